//! What families keep in an engine: one value of each type.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

type Kept = Arc<dyn Any + Send + Sync>;

/// Values by their type.
#[derive(Default)]
pub struct Extensions(Mutex<Vec<Kept>>);

impl Extensions {
    /// The value of a type, made if there is none yet.
    pub fn get_or_make<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        if let Some(there) = self.get() {
            return there;
        }
        // Not under the lock: it may ask for others.
        let made = Arc::new(make());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = find(&all) {
            return there; // of another thread
        }
        all.push(Arc::clone(&made) as Kept);
        made
    }

    /// The value of a type, if there is one.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        find(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a value.
    pub fn insert<T: Send + Sync + 'static>(&self, value: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(value));
    }
}

fn find<T: Send + Sync + 'static>(all: &[Kept]) -> Option<Arc<T>> {
    all.iter().find_map(|kept| Arc::clone(kept).downcast().ok())
}
