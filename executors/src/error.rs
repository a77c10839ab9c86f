//! The error of every executor call: a [`Kind`] for the caller's protocol, a chain of causes for people.

use std::fmt;

/// What sort of failure it was. The shim maps each to one ttrpc status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The container, process, file or cgroup does not exist (any more).
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The bundle, spec or request is wrong; trying again does not help.
    InvalidArgument,
    /// The call is right, but not in the state that the container or host is in.
    FailedPrecondition,
    /// A valid request for something that hybrid does not do.
    Unimplemented,
    /// The host refused for now (a resource is exhausted).
    Unavailable,
    /// Everything else.
    Internal,
}

/// A failure of an executor. Its `Display` is one line: the outermost context, then each cause.
pub struct Error {
    kind: Kind,
    source: anyhow::Error,
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given kind; `source` is a message or an earlier error.
    pub fn new(kind: Kind, source: impl Into<anyhow::Error>) -> Self {
        Self { kind, source: source.into() }
    }

    /// What sort of failure it was.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same error with a sentence in front that says what was being tried.
    pub fn context(self, what: impl fmt::Display + Send + Sync + 'static) -> Self {
        Self { kind: self.kind, source: self.source.context(what) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.source)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:#}", self.kind, self.source)
    }
}

impl std::error::Error for Error {}

/// An error without a kind of its own is [`Kind::Internal`].
impl From<anyhow::Error> for Error {
    fn from(source: anyhow::Error) -> Self {
        Self::new(Kind::Internal, source)
    }
}

/// Adds a [`Kind`] and context to any result, at the place where the kind is known.
pub(crate) trait OrKind<T> {
    /// Turns the error into [`Error`] of `kind`, with `what` in front.
    fn or_kind<C: fmt::Display + Send + Sync + 'static>(self, kind: Kind, what: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrKind<T> for std::result::Result<T, E> {
    fn or_kind<C: fmt::Display + Send + Sync + 'static>(self, kind: Kind, what: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| Error::new(kind, e.into().context(what())))
    }
}

/// Returns early with an [`Error`] of the given [`Kind`] and formatted message.
macro_rules! bail {
    ($kind:ident, $($message:tt)+) => {
        return Err($crate::Error::new($crate::Kind::$kind, anyhow::anyhow!($($message)+)))
    };
}
pub(crate) use bail;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_from_the_outside_in() {
        let error =
            Error::new(Kind::NotFound, anyhow::anyhow!("ENOENT")).context("open config.json").context("container a");
        assert_eq!(error.to_string(), "container a: open config.json: ENOENT");
        assert_eq!(error.kind(), Kind::NotFound);
    }
}
