//! The reader against expected frequencies of published models, and against what is wrong.

mod errors;
mod oracle;
mod robust;
mod spellings;
