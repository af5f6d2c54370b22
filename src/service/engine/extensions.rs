//! What families keep in an engine: one value of each type.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

type Kept = Arc<dyn Any + Send + Sync>;

/// Values by their type.
#[derive(Default)]
pub struct Extensions {
    given: Vec<Kept>,
    made: Mutex<Vec<Kept>>,
}

impl Extensions {
    /// The value of a type, made if there is none yet.
    pub fn get_or_make<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let find = |all: &[Kept]| find::<T>(all);
        if let Some(there) = find(&self.made.lock().unwrap_or_else(PoisonError::into_inner)) {
            return there;
        }
        // Not under the lock: it may take long.
        let made = Arc::new(make());
        let mut all = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = find(&all) {
            return there; // of another thread
        }
        all.push(Arc::clone(&made) as Kept);
        made
    }

    /// The value of a type that was given to the builder.
    pub fn given<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        find(&self.given)
    }

    /// Gives a value.
    pub fn give<T: Send + Sync + 'static>(&mut self, value: T) {
        self.given.push(Arc::new(value));
    }

    /// For another engine: what was given, and nothing that was made.
    pub fn anew(&self) -> Self {
        Self { given: self.given.clone(), made: Mutex::default() }
    }
}

fn find<T: Send + Sync + 'static>(all: &[Kept]) -> Option<Arc<T>> {
    all.iter().find_map(|kept| Arc::clone(kept).downcast().ok())
}
