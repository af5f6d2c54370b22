//! `ropejit inspect`

mod difference;
mod entries;
mod list;
mod picture;
mod report;
mod show;
mod upkeep;
mod verdict;
mod why;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ropejit::remote::Pack;
use ropejit::store::sweep::Bytes;
use ropejit::store::{Kind, Store as _};
use ropejit::{Error, Result};
use serde_json::json;

use super::output;
use entries::Cache;

/// Show what is in the cache: chosen configurations, all candidates' times, integrity.
///
/// There are two kinds of entries. A choice says which variant serves one spec, layout and token count on one device, and
/// keeps all measurements that led to it; it names an artifact, which is a compiled kernel.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit inspect                            all entries
  ropejit inspect show 3f09                  one entry, whose key begins with
                                             3f09
  ropejit inspect why --model llama-3.1-8b --tokens 8192
                                             is it cached, and if not, which
                                             field of the key differs
  ropejit inspect report --html tuning.html  all choices as pictures
  ropejit inspect verify                     exit status 1 if an entry is
                                             damaged
  ropejit inspect gc                         remove what nobody needs
  ropejit inspect --pack OUT.pack what is in a pack

How to read a spec: bf16 d128[..64] h32/8 half_split once table=f32/half
pos=implicit
  bf16, d128[..64], h32/8  dtype, head_dim (and rotary_dim), heads of q/k
  half_split, once         which elements turn together, where it is rounded
  table, pos               form of the cos/sin tables, source of positions
How to read a layout: bshd/16B/t8B
  bshd, 16B, t8B                  order in memory, alignment of heads, of tables
How to read a variant: t128 v8 h2 cs/wb keep pdl pf
  t128, v8, h2   threads per block, elements moved at once, heads per thread
  cs/wb          cache hints of loads/stores
  keep, pdl, pf  tables stay in the L2; overlaps the kernel ahead; prefetches
                 before it waits for that")]
pub struct Inspect {
    #[command(subcommand)]
    what: Option<What>,
    /// Print one JSON document.
    #[arg(long, global = true)]
    json: bool,
    /// List what is in this pack instead, which is not installed and not verified for it.
    #[arg(long, global = true, value_name = "FILE")]
    pack: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    List(list::List),
    Show(show::Show),
    Why(why::Why),
    Report(report::Report),
    /// Check every entry's digest and contents; fails if one is damaged.
    ///
    /// A damaged entry is never used: the next process that needs it warns and makes it again.
    #[command(after_help = "\
Example:
  ropejit inspect verify || ropejit prewarm --model config.json")]
    Verify,
    /// Remove what nobody needs from the cache folder.
    ///
    /// That is: temporary files and locks of dead processes, damaged entries, folders of older format versions, and beyond
    /// the size that the folder may have, the entries that were not used for longest. What a living process uses stays.
    /// Every process that writes does so now and then, but for damaged entries and older versions.
    #[command(after_help = "\
Examples:
  ropejit inspect gc
  ropejit inspect gc --max-bytes 100M")]
    Gc {
        /// Bytes that may stay, such as 500000, 512K, 100M or 2G (default: `ROPEJIT_CACHE_MAX_BYTES`, else 1G).
        #[arg(long, value_name = "BYTES")]
        max_bytes: Option<Bytes>,
    },
    /// The cache folder.
    ///
    /// The one that the environment names, else the user's. Everything in it may be deleted at any time.
    #[command(after_help = "\
Example:
  du -sh \"$(ropejit inspect path)\"")]
    Path,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        if let Some(path) = &self.pack {
            let What::List(command) = self.what.unwrap_or(What::List(list::List::default())) else {
                return Err(Error::argument("--pack", "only a list can be made of a pack").hint(format!(
                    "ropejit inspect list --pack {0}; to check it: ropejit pack verify {0} --pubkey ropejit.pub",
                    path.display()
                )));
            };
            return command.run(&Pack::open(path)?.heads()?, path, self.json);
        }
        let root = entries::root()?;
        match self.what.unwrap_or(What::List(list::List::default())) {
            What::List(command) => command.run(&Cache::open(&root)?.heads()?, &root, self.json),
            What::Show(command) => command.run(&Cache::open(&root)?, self.json),
            What::Why(command) => command.run(&Cache::open(&root)?, self.json),
            What::Report(command) => command.run(&Cache::open(&root)?, self.json),
            What::Verify => {
                let cache = Cache::open(&root)?;
                let all = [cache.store.list(Kind::Choice)?, cache.store.list(Kind::Artifact)?];
                upkeep::verify(all.into_iter().flatten().collect(), self.json, &root)
            }
            What::Gc { max_bytes } => upkeep::gc(&root, max_bytes, self.json),
            What::Path => {
                let path = root.display().to_string();
                if self.json {
                    return output::json(&output::without_engine(json!({ "path": path, "exists": root.exists() })));
                }
                output::line(&path)
            }
        }
    }
}
