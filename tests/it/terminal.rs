//! What a person sees at a terminal: pages that fit, colours that were asked for, completions and manual pages.

use std::process::Command;

use crate::cli::{Ended, SMALL, Shell};

/// The width of a line, where all characters are as wide as one.
fn width(line: &str) -> usize {
    line.chars().count()
}

#[test]
fn a_bench_fits_eighty_columns_and_says_what_is_left_out() {
    let shell = Shell::new();
    let bench = ["bench", "--only", "1×1 ", "--dtype", "f32", "--samples", "3"];
    let narrow = shell.run_with(&bench, &[("COLUMNS", Some("80"))]);
    assert_eq!(narrow.code, 0, "{}", narrow.stderr);
    // Its first line is no table: it names the processor.
    assert!(narrow.stdout.lines().skip(1).all(|line| width(line) <= 80), "{}", narrow.stdout);
    narrow.says(&["no room for: bare µs", "--json has all"]);
    assert!(narrow.stdout.contains("of copy") && !narrow.stdout.contains("bare µs"), "{}", narrow.stdout);
    let whole = shell.ok(&bench);
    for column in ["shape", "dtype", "form", "variant", "MB", "of copy", "shipped", "worst", "host µs", "bare µs"] {
        assert!(whole.stdout.contains(column), "{column} is not in: {}", whole.stdout);
    }
    assert!(!whole.stderr.contains("no room"), "{}", whole.stderr);
}

#[test]
fn many_numbers_of_tokens_do_not_wrap_a_report() {
    let shell = Shell::new();
    let counts: Vec<String> = (0..20).map(|n| (1u64 << n).to_string()).collect();
    shell.ok(&[&["prewarm"], &SMALL[..], &["--no-tune", "--tokens", &counts.join(",")]].concat());
    for command in ["report", "list"] {
        let table = shell.run_with(&["inspect", command], &[("COLUMNS", Some("80"))]).stdout;
        assert!(table.lines().count() > 2 && table.lines().all(|line| width(line) <= 80), "{table}");
    }
    let report = shell.run_with(&["inspect", "report"], &[("COLUMNS", Some("80"))]);
    report.says(&["no room for: 1, 2, ", "--json has all"]);
    assert!(report.stdout.contains("524288"), "{}", report.stdout);
}

/// Help and warnings alike: `NO_COLOR`, then `CLICOLOR_FORCE`; here nothing goes to a terminal.
#[test]
fn all_of_the_command_is_coloured_or_none_of_it() {
    let shell = Shell::new();
    let coloured = |environment: &[(&str, &str)]| {
        let of = |args: &[&str]| {
            let ended = shell.command(args).envs(environment.iter().copied()).env("ROPEJIT_LOG", "nonsense").output();
            let ended = ended.expect("started");
            let warning = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert!(warning.contains("nonsense"), "{warning}");
            (warning.contains("\x1b["), String::from_utf8_lossy(&ended.stdout).contains("\x1b["))
        };
        let (warning, help) = of(&["--help"]);
        assert_eq!(warning, help, "{environment:?}");
        warning
    };
    assert!(!coloured(&[]));
    assert!(coloured(&[("CLICOLOR_FORCE", "1")]));
    assert!(coloured(&[("CLICOLOR_FORCE", "1"), ("CLICOLOR", "0")]));
    assert!(!coloured(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&[("CLICOLOR", "1")]));
}

#[test]
fn completions_know_all_commands() {
    let shell = Shell::new();
    for name in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = shell.ok(&["completions", name]).stdout;
        for word in ["prewarm", "inspect", "--tokens", "completions"] {
            assert!(script.contains(word.trim_start_matches("--")), "{name}: no {word}");
        }
    }
    let script = shell.file("ropejit.bash", &shell.ok(&["completions", "bash"]).stdout);
    let typed = "COMP_WORDS=(ropejit pre); COMP_CWORD=1; _ropejit ropejit pre ropejit; echo ${COMPREPLY[@]}";
    if let Ok(done) = Command::new("bash").args(["-c", &format!(". {script}; {typed}")]).output() {
        assert_eq!(String::from_utf8_lossy(&done.stdout).trim(), "prewarm", "{done:?}");
    }
    assert_eq!(shell.run(&["completions", "cmd"]).code, 2);
}

#[test]
fn there_is_a_manual_page_for_each_command() {
    let shell = Shell::new();
    let page = shell.ok(&["man"]).stdout;
    for part in [".TH ropejit 1", "ROPEJIT_CACHE_DIR", "ropejit\\-inspect(1)"] {
        assert!(page.contains(part), "{part} is not in: {page}");
    }
    let folder = shell.at("man1");
    fs_err::create_dir(&folder).expect("made");
    shell.ok(&["man", &folder.display().to_string()]);
    for name in ["ropejit", "ropejit-inspect-list", "ropejit-pack-keygen", "ropejit-template-check", "ropejit-man"] {
        let page = fs_err::read_to_string(folder.join(format!("{name}.1"))).expect("a page");
        assert!(page.contains(".SH NAME") && page.contains("Examples"), "{page}");
    }
    shell.run(&["man", "/proc/nothing"]).fails(1, &["/proc/nothing", "hint: name a folder"]);
}

#[test]
fn the_version_says_what_compiles_and_which_driver_there_is() {
    let shell = Shell::new();
    let of = |ended: Ended| ended.stdout.lines().map(String::from).collect::<Vec<_>>();
    let told = of(shell.ok(&["--version"]));
    assert_eq!(told[0], format!("ropejit {}", env!("CARGO_PKG_VERSION")));
    assert!(told[1].starts_with("NVRTC: ") && told[2].starts_with("NVIDIA driver: "), "{told:?}");
    // A library that is not there is none, and no error.
    let without = of(shell.run_with(&["--version"], &[("ROPEJIT_NVRTC", Some("/nonexistent/libnvrtc.so"))]));
    assert_eq!(without[1], "NVRTC: not found");
}

/// A warning while a spinner turns: both on one terminal, each on its line, and nothing of the spinner is left.
#[test]
fn a_spinner_leaves_nothing_on_the_terminal() {
    let shell = Shell::new();
    let ropejit = env!("CARGO_BIN_EXE_ropejit");
    // A pseudo-terminal is one line of Python.
    let code = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)";
    let run = |args: &[&str], cache: &str| {
        let mut python = Command::new("python3");
        python.args(["-c", code, ropejit]).args(args).env("ROPEJIT_DEVICE", "host").env("ROPEJIT_CACHE_DIR", cache);
        let done = python.env("TERM", "xterm").env("NO_COLOR", "1").stdin(std::process::Stdio::null()).output();
        done.ok().filter(|done| !done.stdout.is_empty()).map(|done| screen(&String::from_utf8_lossy(&done.stdout)))
    };
    let args = [&["run"], &SMALL[..], &["--tokens", "8", "--tuning", "never"]].concat();
    let Some(lines) = run(&args, "/proc/nothing/cache") else {
        use std::io::Write as _;
        writeln!(std::io::stderr(), "SKIPPED a_spinner_leaves_nothing_on_the_terminal: no Python 3").expect("written");
        return;
    };
    let warnings = lines.iter().filter(|line| line.contains("/proc/nothing/cache")).count();
    assert_eq!(warnings, 1, "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("steady call")), "{lines:#?}");
    let failed = run(&["run", "--model", "/nonexistent"], &shell.cache().display().to_string()).unwrap_or_default();
    assert!(failed.iter().any(|line| line.starts_with("error: ")), "{failed:#?}");
    for line in lines.iter().chain(&failed) {
        // Braille: what a spinner turns.
        assert!(!line.chars().any(|c| ('\u{2800}'..='\u{28ff}').contains(&c)), "{line:?}");
    }
}

/// What stands on a terminal in the end, of what was written to it: it knows carriage returns and the clearing of a line.
fn screen(written: &str) -> Vec<String> {
    let line = |written: &str| {
        let mut line = Vec::new();
        for from_the_left in written.split('\r') {
            let kept = from_the_left.rsplit_once("\x1b[2K").map(|(_, after)| after);
            if kept.is_some() {
                line.clear();
            }
            let text: Vec<char> = kept.unwrap_or(from_the_left).chars().collect();
            line.splice(..text.len().min(line.len()), text);
        }
        line.into_iter().collect()
    };
    written.replace("\r\n", "\n").split('\n').map(line).collect()
}

/// Of a pipe nobody knows how wide its page is.
#[test]
fn help_fits_eighty_columns_also_in_a_pipe() {
    let shell = Shell::new();
    let mut commands: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(command) = commands.pop() {
        let args: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let help = shell.ok(&args).stdout;
        let long: Vec<&str> = help.lines().filter(|line| width(line) > 80).collect();
        assert!(long.is_empty(), "{args:?}: {long:#?}");
        let listed = help.split_once("\nCommands:\n").map_or("", |(_, listed)| listed);
        for line in listed.lines().take_while(|line| !line.is_empty()) {
            // What follows a name is further in.
            let name =
                line.strip_prefix("  ").filter(|text| !text.starts_with(' ')).and_then(|text| text.split(' ').next());
            commands
                .extend(name.filter(|name| *name != "help").map(|name| [&command[..], &[name.to_owned()]].concat()));
        }
    }
}
