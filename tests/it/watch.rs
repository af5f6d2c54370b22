//! What a log sees of first calls, on the host device: spans around the work, and a warning that names a late compile.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use ropejit::{DType, DeviceChoice, Engine, Origin, RopeSpec, Tuning};
use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::cases::Case;
use crate::engine::{small, works};

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What is logged meanwhile, a line for each span that is closed.
fn logged(f: impl FnOnce()) -> String {
    // Where a process has one subscriber, a span that another thread meets first is judged by that thread's, which is none, and is
    // off for all. With two, all are asked.
    static ANOTHER: OnceLock<Dispatch> = OnceLock::new();
    ANOTHER.get_or_init(|| Dispatch::new(NoSubscriber::default()));
    let text = Text::default();
    let writer = text.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_span_events(FmtSpan::CLOSE)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::with_default(subscriber, f);
    let bytes = text.0.lock().expect("not poisoned").clone();
    String::from_utf8(bytes).expect("text")
}

#[test]
fn first_calls_have_spans_and_late_ones_a_warning() {
    let builder = Engine::builder().device(DeviceChoice::Host).in_memory().tuning(Tuning::Never);
    let engine = builder.late_after(Duration::ZERO).build().expect("opens");
    let first = logged(|| assert_eq!(works(&engine, &small()), Origin::Compiled));
    for span in ["ropejit_compile", "ropejit_load"] {
        assert_eq!(first.matches(&format!("{span}{{family=\"rope\" spec=bf16 d64")).count(), 1, "{span}: {first}");
    }
    assert!(!first.contains("WARN") && !first.contains("ropejit_tune"), "{first}");
    assert_eq!(logged(|| assert_eq!(works(&engine, &small()), Origin::Memory)), "", "the call after that logs nothing");
    let late = Case::new(RopeSpec::new(DType::F16, 64, 4, 2), 1, 5);
    let warned = logged(|| assert_eq!(works(&engine, &late), Origin::Compiled));
    let warnings: Vec<&str> = warned.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{warned}");
    for part in ["rope", &late.spec.to_string(), "8 tokens", "layout bshd/", "prewarm"] {
        assert!(warnings[0].contains(part), "{part} is not in: {}", warnings[0]);
    }
}
