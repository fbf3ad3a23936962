//! Every error of the API: one shape, RFC 9457 (`application/problem+json`).

use serde::{Deserialize, Serialize};

/// Every problem's type begins so; behind it is a word that programs can compare.
pub const URN_PREFIX: &str = "urn:enisle:problem:";

/// What was wrong, what was expected, what to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Problem {
    /// `urn:enisle:problem:` and a word that programs can compare.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    /// At most 2,048 bytes; of a longer explanation the beginning.
    pub detail: String,
}

/// What kinds of problems there are.
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

    /// Its status, its word, its title.
    #[must_use]
    pub const fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::BadRequest => (400, "bad-request", "The request is not right"),
            Self::Forbidden => (403, "forbidden", "This peer may not do that"),
            Self::Expelled => (403, "expelled", "The tenant is expelled"),
            Self::NotFound => (404, "not-found", "There is no such thing"),
            Self::MethodNotAllowed => (405, "method-not-allowed", "Not with this method"),
            Self::TooSlow => (408, "too-slow", "The request did not arrive in time"),
            Self::Conflict => (409, "conflict", "It is something else already"),
            Self::TooLarge => (413, "too-large", "The request is too large"),
            Self::Quota => (429, "quota", "The tenant is over its quota"),
            Self::Internal => (500, "internal", "The daemon could not do it"),
            Self::NoCapacity => (503, "no-capacity", "There is no capacity"),
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

    /// The answer has a `Retry-After`.
    #[must_use]
    pub const fn says_when_to_retry(self) -> bool {
        matches!(self, Self::Quota | Self::NoCapacity)
    }
}
