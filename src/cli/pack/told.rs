//! What a pack holds, and how far work on it has come.

use indicatif::ProgressBar;
use ropejit::remote::Pack;
use ropejit::store::Kind;
use serde_json::{Value, json};

/// What a pack holds, as JSON.
pub fn told(pack: &Pack) -> Value {
    let index = pack.index();
    json!({
        "pack": pack.path(), "bytes": pack.bytes(), "templates": index.templates,
        "architectures": index.architectures(),
        "choices": index.count(Kind::Choice), "kernels": index.count(Kind::Artifact),
    })
}

/// The same for people.
pub fn summary(pack: &Pack) -> String {
    let index = pack.index();
    format!(
        "{}: choices {}, kernels {}, bytes {}, for {}",
        pack.path().display(),
        index.count(Kind::Choice),
        index.count(Kind::Artifact),
        pack.bytes(),
        index.architectures().join(", ")
    )
}

/// Shows how many entries are done.
pub fn on<'a>(bar: &'a ProgressBar, doing: &'a str) -> impl Fn(usize, usize) + 'a {
    move |done, all| bar.set_message(format!("{doing} {done} of {all}"))
}
