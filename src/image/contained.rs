//! Decoders are the work of others, and some stop the program (a panic) where a damaged file meets a case that they had not thought of: zune-jpeg
//! 0.5.15 does. A picture is no reason to lose a batch or a chat, so that such a panic is one more way for a picture to be damaged.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result};

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// What `decode` gives. Errors (kind image): its own, or it panicked. What it had is dropped, nothing that it shares may be left half changed.
pub(super) fn contained<T>(decode: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = IS_CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(decode));
    IS_CONTAINED.set(before);
    result.unwrap_or_else(|_| Err(Error::image("cannot decode this picture; it seems damaged (its decoder gave up)")))
}

/// Whether a panic of this thread is contained: one that a hook need not tell.
pub fn is_contained() -> bool {
    IS_CONTAINED.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_inside_is_an_error_and_one_outside_is_not_hidden() {
        let failed = contained(|| {
            assert!(is_contained());
            [0].get(1).copied().ok_or_else(|| panic!("a decoder's"))
        });
        assert!(failed.unwrap_err().to_string().contains("damaged"));
        assert!(!is_contained());
        assert_eq!(contained(|| Ok(1)).unwrap(), 1);
        assert!(contained(|| contained(|| Ok(())).map(|()| is_contained())).unwrap(), "the outer one still counts");
    }
}
