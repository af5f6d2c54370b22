use super::super::tests::{plan, problem};
use super::*;
use crate::device::host::Host;
use crate::families::template::trial::numbers;
use crate::service::family::Problem as _;

#[test]
fn a_thread_that_cannot_be_started_is_an_error_and_no_hang() {
    let device: Arc<dyn Device> = Arc::new(Host::open());
    let p = problem(&[], &[]);
    let plan = plan(&p, device.as_ref(), &p.space(device.abilities())[0]);
    let (values, cells) = numbers(&p, 1, 0);
    let memory = device.alloc(64).expect("has some");
    let refuses: Start = |_| Err(std::io::Error::from(std::io::ErrorKind::WouldBlock));
    let launch = Bounded { p, plan, values, cells };
    let (back, done) = run_on(refuses, launch, &device, memory, Duration::MAX, "n = 1");
    let error = done.expect_err("has no thread");
    assert!(error.to_string().starts_with("no thread to run a check on: "), "{error}");
    assert!(!is_hang(&error) && back.is_some(), "its memory is free for the next one");
}

#[test]
fn what_hangs_is_known_by_more_than_its_text() {
    let text = Error::new(ErrorKind::Device, "hangs: it has not ended in 10 s");
    assert!(!is_hang(&text));
    assert!(is_hang(&text.about(Hang).again()));
}
