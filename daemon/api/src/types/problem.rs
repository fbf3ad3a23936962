//! Every error of the API has one shape, RFC 9457 (`application/problem+json`).

use serde::{Deserialize, Serialize};

/// The prefix of every problem's type; after it comes a word that programs can compare.
pub const URN_PREFIX: &str = "urn:enisle:problem:";

/// What was wrong, what was expected, and what to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Problem {
    /// `urn:enisle:problem:` and a word that programs can compare.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// At most 2,048 bytes; a longer explanation is truncated.
    pub detail: String,
}

/// The kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProblemKind {
    BadRequest,
    Forbidden,
    Expelled,
    NotFound,
    MethodNotAllowed,
    TooSlow,
    Conflict,
    TooLarge,
    Quota,
    Internal,
    NoCapacity,
    NoRoom,
}

impl ProblemKind {
    /// In the order of their statuses.
    pub const ALL: [Self; 12] = [
        Self::BadRequest,
        Self::Forbidden,
        Self::Expelled,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::TooSlow,
        Self::Conflict,
        Self::TooLarge,
        Self::Quota,
        Self::Internal,
        Self::NoCapacity,
        Self::NoRoom,
    ];

    /// Status, word and title.
    #[must_use]
    pub const fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::BadRequest => (400, "bad-request", "The request is invalid"),
            Self::Forbidden => (403, "forbidden", "This peer may not do that"),
            Self::Expelled => (403, "expelled", "The tenant is expelled"),
            Self::NotFound => (404, "not-found", "The resource does not exist"),
            Self::MethodNotAllowed => (405, "method-not-allowed", "The resource does not support this method"),
            Self::TooSlow => (408, "too-slow", "The request did not arrive in time"),
            Self::Conflict => (409, "conflict", "The id already has other content"),
            Self::TooLarge => (413, "too-large", "The request is too large"),
            Self::Quota => (429, "quota", "The tenant is over its quota"),
            Self::Internal => (500, "internal", "The daemon failed"),
            Self::NoCapacity => (503, "no-capacity", "There is no capacity at the moment"),
            Self::NoRoom => (507, "no-room", "There is no room for the answer"),
        }
    }

    #[must_use]
    pub const fn status(self) -> u16 {
        self.parts().0
    }

    /// The problem's `type`.
    #[must_use]
    pub fn urn(self) -> String {
        format!("{URN_PREFIX}{}", self.parts().1)
    }

    /// A problem of this kind.
    #[must_use]
    pub fn says(self, detail: String) -> Problem {
        let (status, _, title) = self.parts();
        Problem { kind: self.urn(), title: title.to_owned(), status, detail }
    }

    /// Whether the answer has a `Retry-After`.
    #[must_use]
    pub const fn says_when_to_retry(self) -> bool {
        matches!(self, Self::Quota | Self::NoCapacity)
    }
}
