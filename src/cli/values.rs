//! How the values of options are read.

use ropejit::Error;

/// An option's value, or what is wrong with it.
pub fn parse<T: std::str::FromStr<Err = Error>>(text: &str) -> std::result::Result<T, String> {
    text.parse().map_err(|e: Error| {
        let hint = e.advice().map_or_else(String::new, |hint| format!("; {hint}"));
        format!("{}{hint}", e.message())
    })
}

/// A token count.
pub fn tokens(text: &str) -> std::result::Result<u64, String> {
    match text.trim().parse::<u64>() {
        Ok(n) if (1..=1 << 30).contains(&n) => Ok(n),
        _ => Err(format!("'{text}' is not a number of tokens from 1 to 2^30")),
    }
}
