//! `ropejit inspect verify` and `ropejit inspect gc`

use std::path::Path;

use ropejit::store::layers::Places;
use ropejit::store::sweep::{Bytes, Swept};
use ropejit::store::{Head, Listed};
use ropejit::{Error, ErrorKind, Result};
use serde_json::json;

use super::super::output;
use super::entries::{Row, check, row};

/// Checks every entry, to the last byte.
pub fn verify(all: Vec<Listed>, as_json: bool, root: &Path) -> Result<()> {
    let entries = all.len();
    let checked = |l: Listed| {
        let l: Listed<Head> = l.into();
        let entry = l.entry.and_then(|head| check(&head).map(|_| head));
        row(&Listed { entry, ..l })
    };
    let bad: Vec<Row> = all.into_iter().map(checked).filter(|r| r.problem.is_some()).collect();
    if as_json {
        output::json(&output::without_engine(json!({ "entries": entries, "damaged": bad })))?;
    } else {
        for r in &bad {
            output::line(&format!("{}: {}", r.path.display(), r.problem.clone().unwrap_or_default()))?;
        }
        output::line(&format!("entries {entries}, damaged {}", bad.len()))?;
    }
    if bad.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, format!("damaged entries: {}", bad.len()))
        .subject_is(root.display().to_string())
        .hint("they are never used, and made again at the next use; ropejit inspect gc removes them"))
}

/// Removes what nobody needs, and says what that was.
pub fn gc(root: &Path, max_bytes: Option<Bytes>, as_json: bool) -> Result<()> {
    let mut places = Places::from_environment()?;
    places.max_bytes = max_bytes.map(|Bytes(n)| n).or(places.max_bytes);
    let swept = if root.exists() { places.open_user(root)?.gc()? } else { Swept::default() };
    if as_json {
        output::json(&output::without_engine(json!(swept)))?;
    } else {
        print(&swept)?;
    }
    if swept.failed == 0 {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, format!("what could not be removed: {}", swept.failed))
        .subject_is(root.display().to_string())
        .hint("ROPEJIT_LOG=debug says why; the folder's owner must be able to write to it"))
}

fn print(swept: &Swept) -> Result<()> {
    for (count, what) in [
        (swept.temporaries, "temporary files of dead processes"),
        (swept.locks, "locks of dead processes"),
        (swept.versions, "folders of older format versions"),
        (swept.damaged, "damaged entries"),
        (swept.evicted, "entries beyond the folder's size, the least recently used"),
    ] {
        if count > 0 {
            output::line(&format!("removed {count} {what}"))?;
        }
    }
    if swept.in_use > 0 {
        output::line(&format!("left {} more that a living process uses", swept.in_use))?;
    }
    output::line(&format!("entries {}, bytes {}", swept.entries, swept.bytes))
}
