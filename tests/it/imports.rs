//! Who names whom: read from the `use` declarations and paths of the sources, so that circles and climbs are found.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module's path, such as `["service", "engine", "slots"]`; empty for the crate's root.
type Module = Vec<String>;

/// The sources of a crate, by module.
pub struct Sources {
    /// By module: the file's name in the folder, and its code.
    pub files: BTreeMap<Module, (String, String)>,
    /// How the crate calls itself, beside `crate`.
    own_name: &'static str,
    /// Names at the root that stand for a module elsewhere: `pub use service::engine;`.
    aliases: BTreeMap<String, Module>,
}

/// The text without comments and unit tests, which may name what they like.
pub fn code(text: &str) -> String {
    let tests = ["#[cfg(test)]\nmod ", "#[cfg(test)]\npub mod ", "#[cfg(test)]\npub(crate) mod "];
    let end = tests.iter().filter_map(|start| text.find(start)).min().unwrap_or(text.len());
    text[..end].lines().filter(|l| !l.trim_start().starts_with("//")).flat_map(|l| [l, "\n"]).collect()
}

impl Sources {
    /// All files under a folder of this project, but for those of unit tests and programs.
    pub fn read(folder: &str, own_name: &'static str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let (mut folders, mut files) = (vec![root.clone()], BTreeMap::new());
        while let Some(folder) = folders.pop() {
            for entry in fs_err::read_dir(&folder).expect("readable") {
                let path: PathBuf = entry.expect("an entry").path();
                let name = path.strip_prefix(&root).expect("inside").display().to_string();
                if path.is_dir() {
                    if !name.ends_with("tests") && name != "bin" {
                        folders.push(path);
                    }
                    continue;
                }
                let Some(stem) = name.strip_suffix(".rs").filter(|stem| !stem.ends_with("tests")) else { continue };
                let mut module: Module = stem.split('/').map(str::to_owned).collect();
                if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
                    module.pop();
                }
                let text = fs_err::read_to_string(&path).expect("text");
                assert!(files.insert(module, (name, code(&text))).is_none());
            }
        }
        assert!(files.len() > 5, "the sources were not found");
        let mut sources = Self { files, own_name, aliases: BTreeMap::new() };
        let root = sources.files.get(&Module::new()).map_or_else(String::new, |(_, code)| code.clone());
        for (_, path) in paths(&root).into_iter().filter(|(used, path)| *used && path.len() > 1) {
            let module = sources.deepest(&path);
            if module.len() == path.len() {
                sources.aliases.insert(path[path.len() - 1].clone(), module);
            }
        }
        sources
    }

    /// The deepest module on a path from the root.
    fn deepest(&self, path: &[String]) -> Module {
        let mut module = Module::new();
        for name in path {
            module.push(name.clone());
            if !self.files.contains_key(&module) {
                module.pop();
                break;
            }
        }
        module
    }

    /// The module that a path leads to, seen from another; `None` for one outside of the crate.
    fn target(&self, from: &Module, path: &[String]) -> Option<Module> {
        let first = path.first()?.as_str();
        let mut base = match first {
            "crate" => Module::new(),
            name if name == self.own_name => Module::new(),
            "self" | "super" => from.clone(),
            _ => {
                let child = [from.as_slice(), &path[..1]].concat();
                return self.files.contains_key(&child).then(|| self.deepest(&[from.as_slice(), path].concat()));
            }
        };
        let mut rest = path;
        while let Some((first, after)) = rest.split_first() {
            match first.as_str() {
                "super" => drop(base.pop()),
                "crate" | "self" => {}
                name if name == self.own_name && rest.len() == path.len() => {}
                _ => break,
            }
            rest = after;
        }
        if base.is_empty()
            && let Some(alias) = rest.first().and_then(|name| self.aliases.get(name))
        {
            return Some(self.deepest(&[alias.as_slice(), &rest[1..]].concat()));
        }
        Some(self.deepest(&[base.as_slice(), rest].concat()))
    }

    /// For each module, those that it names. The root, which names all, is left out.
    pub fn edges(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let of = |(module, (_, code)): (_, &(String, String))| {
            let named = paths(code).into_iter().filter_map(|(_, path)| self.target(module, &path));
            (module, named.filter(|named| named != module && !named.is_empty()).collect())
        };
        self.files.iter().filter(|(module, _)| !module.is_empty()).map(of).collect()
    }

    /// The modules of each circle, by the names of their files.
    pub fn circles(&self) -> Vec<Vec<String>> {
        let edges = self.edges();
        let reach: BTreeMap<&Module, BTreeSet<&Module>> = edges
            .keys()
            .map(|&from| {
                let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
                while let Some(next) = open.pop().and_then(|module| edges.get(module)) {
                    open.extend(next.iter().filter(|module| seen.insert(*module)));
                }
                (from, seen)
            })
            .collect();
        let mut circles: Vec<Vec<String>> = Vec::new();
        let mut told = BTreeSet::new();
        for (&module, reached) in &reach {
            let circle: Vec<&Module> =
                reached.iter().copied().filter(|&other| reach.get(other).is_some_and(|r| r.contains(module))).collect();
            if circle.len() > 1 && told.insert(circle.clone()) {
                circles.push(circle.iter().map(|&module| self.files[module].0.clone()).collect());
            }
        }
        circles
    }
}

/// All paths in a code, each with whether a `use` declares it.
fn paths(code: &str) -> Vec<(bool, Vec<String>)> {
    let (mut all, mut rest) = (Vec::new(), String::new());
    let mut left = code;
    while let Some(at) = left.find("use ") {
        let (before, after) = left.split_at(at);
        rest.push_str(before);
        let starts = before.chars().next_back().is_none_or(|c| c.is_whitespace() || c == ')');
        let Some(end) = after.find(';').filter(|_| starts) else {
            rest.push_str(&after[..4]);
            left = &after[4..];
            continue;
        };
        let mut tree = Vec::new();
        expand(&[], &after[4..end], &mut tree);
        all.extend(tree.into_iter().map(|path| (true, path)));
        left = &after[end..];
    }
    rest.push_str(left);
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in rest.split(|c| !part(c)).filter(|word| word.contains("::")) {
        let path: Vec<String> = word.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
        all.push((false, path));
    }
    all
}

/// The paths of a `use` tree.
fn expand(prefix: &[String], tree: &str, into: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    let names = |text: &str| {
        let text = text.split(" as ").next().unwrap_or_default();
        text.split("::").map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let Some((head, inside)) = tree.split_once('{') else {
        let path = [prefix, &names(tree)].concat();
        into.push(path.into_iter().filter(|name| name != "*").collect());
        return;
    };
    let prefix = [prefix, &names(head)].concat();
    let (mut depth, mut start) = (0, 0);
    let inside = inside.trim_end().strip_suffix('}').unwrap_or(inside);
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inside[start..at].trim().is_empty() {
                    expand(&prefix, &inside[start..at], into);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

#[test]
fn paths_are_read_from_trees_and_code() {
    let code =
        "use crate::a::{b::{C, D as E}, self};\npub(crate) use super::f;\nfn x() { crate::g::h(); because use_it::y }";
    let mut got: Vec<String> = paths(code).into_iter().map(|(_, path)| path.join("::")).collect();
    got.sort();
    assert_eq!(got, ["crate::a::b::C", "crate::a::b::D", "crate::a::self", "crate::g::h", "super::f", "use_it::y"]);
}

#[test]
fn a_circle_is_found() {
    let module = |name: &str| vec![name.to_owned()];
    let file = |name: &str, code: &str| (module(name), (format!("{name}.rs"), code.to_owned()));
    let files = [
        file("a", "use crate::b::B;"),
        file("b", "fn f() { super::c::d() }"),
        file("c", "use demo::a;"),
        file("d", "use crate::a;"),
    ];
    let sources = Sources { files: files.into_iter().collect(), own_name: "demo", aliases: BTreeMap::new() };
    assert_eq!(sources.circles(), [["a.rs", "b.rs", "c.rs"]]);
}
