//! Background work beside the service: in short pieces, with rests between them.
//!
//! A piece of work on the device is a slice. After each, the device is given back for as long as the slice took on the
//! wall, so background work has at most half of the device's time, and less where others keep it waiting. While a graph is
//! captured there is no slice at all. Nobody who waits here is in the way of a shutdown.

use std::cell::Cell;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::service::device::{Facts, Measuring};

/// How long to hold off at a time while a graph is captured.
const HOLD: Duration = Duration::from_millis(20);
/// A sample takes at most this part of a slice, so that one of a candidate twice as slow still fits.
const SAMPLE_PART: f64 = 0.5;
/// A launch takes at most this part of a slice, so that a sample has several.
const LAUNCH_PART: f64 = 0.125;
/// The memory of a device that does not tell its clock is taken to be this slow.
const SLOW_BYTES_PER_NS: f64 = 200.0;

/// The error of work that was cut short.
pub fn cancelled() -> Error {
    Error::new(ErrorKind::Unsupported, "cancelled: the engine is dropped")
}

/// What background work runs beside.
pub trait Beside {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;
    /// Waits, or shorter when work is cancelled.
    fn wait(&self, time: Duration);
    /// Whether nobody needs the work any more.
    fn cancelled(&self) -> bool;
    /// Whether somebody captures a graph, or did a moment ago.
    fn capturing(&self) -> bool;
}

/// How work on the device is spread over time.
pub struct Throttle<'a> {
    beside: Option<&'a dyn Beside>,
    rested: Cell<Duration>,
    longest: Cell<Duration>,
}

impl<'a> Throttle<'a> {
    /// Somebody waits for the work: no rests.
    pub fn full() -> Self {
        Self { beside: None, rested: Cell::default(), longest: Cell::default() }
    }

    /// In slices, beside others.
    pub fn slices(beside: &'a dyn Beside) -> Self {
        Self { beside: Some(beside), ..Self::full() }
    }

    pub fn in_slices(&self) -> bool {
        self.beside.is_some()
    }

    pub fn cancelled(&self) -> bool {
        self.beside.is_some_and(Beside::cancelled)
    }

    /// Time that was spent resting and holding off.
    pub fn rested(&self) -> Duration {
        self.rested.get()
    }

    /// The longest slice, on the wall: with what it waited for others on the device.
    pub fn longest(&self) -> Duration {
        self.longest.get()
    }

    /// Runs one piece of work on the device, which must be over when `work` returns.
    ///
    /// # Errors
    /// Those of `work`, and when it was cancelled before it began.
    pub fn slice<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(beside) = self.beside else { return work() };
        while !beside.cancelled() && beside.capturing() {
            self.rest(beside, HOLD);
        }
        if beside.cancelled() {
            return Err(cancelled());
        }
        let started = beside.now();
        let done = work();
        let took = beside.now().saturating_sub(started);
        self.longest.set(self.longest.get().max(took));
        self.rest(beside, took);
        done
    }

    fn rest(&self, beside: &dyn Beside, time: Duration) {
        let started = beside.now();
        beside.wait(time);
        self.rested.set(self.rested.get() + beside.now().saturating_sub(started));
    }

    /// Bytes that a launch in a slice may move, before any has been timed: those of the memory's peak rate.
    pub fn launch_bytes(&self, facts: &Facts, memory_clock_khz: u32, measuring: &Measuring) -> u64 {
        if !self.in_slices() || facts.compute_capability.0 == 0 {
            return u64::MAX; // a host's memory to measure in is small
        }
        let peak = Some(facts.peak_bytes_per_ns(memory_clock_khz)).filter(|&p| p > 0.0).unwrap_or(SLOW_BYTES_PER_NS);
        (LAUNCH_PART * measuring.slice_ns * peak) as u64
    }

    /// Of `tokens` tokens, whose launch takes `ns`, how many to measure.
    pub fn tokens(&self, measuring: &Measuring, tokens: u64, ns: f64) -> u64 {
        let most = LAUNCH_PART * measuring.slice_ns;
        if !self.in_slices() || ns <= most {
            return tokens;
        }
        // A power of two, so that two runs are likely to agree.
        let fitting = (tokens as f64 * most / ns) as u64;
        1 << fitting.max(1).ilog2()
    }

    /// How many launches of `ns` each make a sample.
    pub fn launches(&self, measuring: &Measuring, ns: f64) -> usize {
        let (least, most) = measuring.launches;
        let wanted = ((measuring.sample_ns / ns) as usize).clamp(least, most);
        if self.in_slices() { wanted.min((SAMPLE_PART * measuring.slice_ns / ns) as usize).max(1) } else { wanted }
    }
}

#[cfg(test)]
#[path = "throttle_tests.rs"]
mod tests;
