//! Backends that outlive the tasks they are lent to.

use parking_lot::Mutex;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Where a device keeps something that a task borrows from activation to reset.
#[derive(Debug)]
pub(crate) struct Shelf<T>(Arc<Mutex<Option<T>>>);

impl<T> Shelf<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Arc::new(Mutex::new(Some(value))))
    }

    /// Lends the value out; an error while a task has it.
    pub(crate) fn lend(&self) -> io::Result<Loan<T>> {
        let value = self.0.lock().take();
        if value.is_none() {
            return Err(io::Error::other(
                "the backend is still in use by an earlier task",
            ));
        }
        Ok(Loan {
            value,
            shelf: self.0.clone(),
        })
    }

    /// Runs `f` on the value, if it is here.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.0.lock().as_mut().map(f)
    }
}

/// Something lent; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Loan<T> {
    /// `None` only while being dropped.
    value: Option<T>,
    shelf: Arc<Mutex<Option<T>>>,
}

impl<T> Drop for Loan<T> {
    fn drop(&mut self) {
        *self.shelf.lock() = self.value.take();
    }
}

#[expect(clippy::expect_used, reason = "the value leaves only in drop")]
impl<T> Deref for Loan<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value.as_ref().expect("lent until dropped")
    }
}

#[expect(clippy::expect_used, reason = "the value leaves only in drop")]
impl<T> DerefMut for Loan<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("lent until dropped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_comes_back_and_cannot_be_lent_twice() {
        let shelf = Shelf::new(1);
        let mut loan = shelf.lend().unwrap();
        *loan += 1;
        assert!(shelf.lend().is_err());
        assert_eq!(shelf.with(|_| ()), None);
        drop(loan);
        assert_eq!(*shelf.lend().unwrap(), 2);
    }
}
