use std::path::PathBuf;

use super::*;

const TOML: &str = include_str!("../../../tests/data/templates/add_rmsnorm.toml");
const CU: &str = include_str!("../../../tests/data/templates/add_rmsnorm.cu");

/// Loads a folder with these files in it; an error names them without the folder.
fn load(files: &[(&str, &[u8])]) -> Result<Template, String> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    let shown = format!("{}/", folder.path().display());
    Template::load(folder.path().join("a.toml")).map_err(|e| e.to_string().replace(&shown, ""))
}

#[test]
fn two_files_are_one_template() {
    let template = load(&[("a.toml", TOML.as_bytes()), ("add_rmsnorm.cu", CU.as_bytes())]).expect("is right");
    assert_eq!((template.family(), template.gpu_only()), ("add_rmsnorm", None));
    assert_eq!(template.path().file_name(), Some("a.toml".as_ref()));
    assert_eq!(template.digest().len(), 64);
}

#[test]
fn a_file_that_is_missing_or_no_text_is_named() {
    assert_eq!(
        load(&[]).err().expect("fails"),
        "a.toml: cannot be read: No such file or directory (os error 2)\nhint: name the .toml of a kernel; its `source` lies beside it"
    );
    assert_eq!(
        load(&[("a.toml", TOML.as_bytes())]).err().expect("fails"),
        "add_rmsnorm.cu: cannot be read: No such file or directory (os error 2)\nhint: a.toml:2 names it as its source"
    );
    assert_eq!(load(&[("a.toml", b"# \n\xff")]).err().expect("fails"), "a.toml:2: is not UTF-8 text");
    let error = load(&[("a.toml", TOML.as_bytes()), ("add_rmsnorm.cu", b"// \xff")]).err().expect("fails");
    assert_eq!(error, "add_rmsnorm.cu:1: is not UTF-8 text");
    let large = vec![b' '; 2 << 20];
    assert_eq!(load(&[("a.toml", &large)]).err().expect("fails"), "a.toml: is larger than 262144 bytes");
}

/// Opening a pipe waits for who writes to it, and `/dev/zero` has no end.
#[cfg(target_os = "linux")]
#[test]
fn what_is_no_regular_file_is_an_error_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let (toml, cu) = (folder.path().join("add_rmsnorm.toml"), folder.path().join("add_rmsnorm.cu"));
    let make = |path: &Path| {
        let made = std::process::Command::new("mkfifo").arg(path).status().expect("runs");
        assert!(made.success());
    };
    let error = |path: &Path| {
        let error = Template::load(&toml).err().expect("fails");
        assert_eq!((error.kind(), error.subject()), (ErrorKind::Io, Some(path.display().to_string().as_str())));
        assert!(error.to_string().contains("it is a pipe, a socket or a device, not a regular file"), "{error}");
    };
    make(&toml);
    error(&toml);
    std::fs::remove_file(&toml).expect("removed");
    std::os::unix::fs::symlink("/dev/zero", &toml).expect("made");
    error(&toml);
    std::fs::remove_file(&toml).expect("removed");
    std::fs::write(&toml, TOML).expect("written");
    make(&cu);
    error(&cu);
}

#[test]
fn what_is_wrong_in_either_file_is_named() {
    let text = TOML.replace("bucket", "buckets");
    let error = load(&[("a.toml", text.as_bytes()), ("add_rmsnorm.cu", CU.as_bytes())]).err().expect("fails");
    assert_eq!(
        error,
        "a.toml:26: [launch] buckets: unknown key\nhint: known here: grid, block, shared, bucket, options"
    );
    let text = TOML.replace("rows = [", "row = [");
    let error = load(&[("a.toml", text.as_bytes()), ("add_rmsnorm.cu", CU.as_bytes())]).err().expect("fails");
    assert!(error.starts_with("a.toml:") && error.contains(": [test] row: unknown key\n"), "{error}");
    let text = CU.replace("weight", "w");
    let error = load(&[("a.toml", TOML.as_bytes()), ("add_rmsnorm.cu", text.as_bytes())]).err().expect("fails");
    assert_eq!(error, "add_rmsnorm.cu:7: parameter 3 of add_rmsnorm is 'w', and [args] has 'weight' there");
    let lists = ["a", "b", "c"].map(|name| {
        let values: Vec<_> = (0..100).map(|n| n.to_string()).collect();
        format!("{name} = [{}]\n", values.join(", "))
    });
    let text = TOML
        .replace("[tune]\n", &format!("[tune]\n{}", lists.concat()))
        .replace("{ threads", "{ a = 1, b = 1, c = 1, threads");
    let error = load(&[("a.toml", text.as_bytes()), ("add_rmsnorm.cu", CU.as_bytes())]).err().expect("fails");
    assert_eq!(
        error,
        "a.toml:8: [tune]: its lists make 9000000 combinations, and 64 candidates is the most\n\
         hint: shorten the lists, or forbid more by 'where'"
    );
}

fn spec(values: &[(&str, &str)]) -> Result<String, String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates");
    let template = Template::load(folder.join("add_rmsnorm.toml")).expect("is right");
    let spec = template.description().spec(values.iter().copied()).map_err(|e| e.to_string())?;
    assert_eq!(spec.stated.json()["hidden"], 64);
    Ok(spec.stated.text().to_owned())
}

#[test]
fn a_spec_has_a_value_of_each_key() {
    assert_eq!(spec(&[("hidden", "64"), ("dtype", "bf16")]).as_deref(), Ok("add_rmsnorm dtype=bf16,hidden=64"));
    let error = |values: &[(&str, &str)]| spec(values).expect_err("is wrong");
    assert_eq!(
        error(&[("dtype", "bf16")]),
        "hidden: is missing: add_rmsnorm is compiled for a value of it\nhint: it is an integer of type u32"
    );
    assert_eq!(
        error(&[("hidden", "64")]),
        "dtype: is missing: add_rmsnorm is compiled for a value of it\nhint: it is one of f32, f16, bf16"
    );
    assert_eq!(error(&[("dtype", "f64"), ("hidden", "64")]), "dtype: 'f64' is not one of f32, f16, bf16");
    for wrong in ["-1", "4294967296", "064", "+64", "6.4", "x", ""] {
        let expected = format!("hidden: '{wrong}' is not an integer of type u32");
        assert_eq!(error(&[("dtype", "f32"), ("hidden", wrong)]), expected);
    }
    assert_eq!(error(&[("dim", "64")]), "dim: add_rmsnorm has no such spec\nhint: [spec] has dtype, hidden");
    assert_eq!(error(&[("hidden", "1"), ("hidden", "1")]), "hidden: is given twice");
}

#[test]
fn assignments_read_back_and_nothing_else_does() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates");
    let template = Template::load(folder.join("add_rmsnorm.toml")).expect("is right");
    let d = template.description();
    let config = d.config(&[512, 8]);
    assert_eq!(config.text(), "threads=512 vec=8");
    assert_eq!(d.assignment_of(config.json()).as_deref(), Some(&[512, 8][..]));
    assert_eq!(d.parse_assignment(config.text()).expect("is one").as_ref(), [512, 8]);
    for wrong in ["", "threads=512", "vec=8 threads=512", "threads=512  vec=8", "threads=0512 vec=8", "threads=1 vec"] {
        let error = d.parse_assignment(wrong).expect_err(wrong).to_string();
        assert_eq!(
            error,
            format!(
                "variant: '{wrong}' is no assignment of add_rmsnorm's tunables\nhint: one reads like this: threads=256 vec=1"
            )
        );
    }
    for wrong in [r#"{"threads": 512}"#, r#"{"threads": 513, "vec": 8}"#, r#"{"threads": "512", "vec": 8}"#, "7"] {
        assert_eq!(d.assignment_of(&serde_json::from_str(wrong).expect("JSON")), None, "{wrong}");
    }
}
