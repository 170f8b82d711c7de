//! Why a test failed.

use std::{fmt, io};

/// A sentence saying what went wrong, the cause last.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(String);

/// Of a step of a test.
pub type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure described by `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// What the last system call of this thread said of `what`.
    #[must_use]
    pub fn last_os_error(what: impl fmt::Display) -> Self {
        Self(format!("{what}: {}", io::Error::last_os_error()))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

// `main` and test harnesses print errors by `Debug`.
impl fmt::Debug for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<chaos_user::kernel::Error> for Failure {
    fn from(error: chaos_user::kernel::Error) -> Self {
        Self(error.to_string())
    }
}

/// Says what was being done when an error came.
pub trait Context<T> {
    /// The error, preceded by `what`.
    ///
    /// # Errors
    ///
    /// The one there was.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Failure(format!("{what}: {error}")))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Failure(what.to_string()))
    }
}

/// Fails the test unless the condition holds: `ensure!(lost == 0, "{lost} packets lost")`.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err($crate::error::Failure::new(format!($($message)+)));
        }
    };
}

/// Result of a system call that returns a negative number for failure.
///
/// # Errors
///
/// If it is one; with what the kernel said.
pub fn check(result: i64, what: impl fmt::Display) -> Result<i64> {
    if result < 0 { Err(Failure::last_os_error(what)) } else { Ok(result) }
}
