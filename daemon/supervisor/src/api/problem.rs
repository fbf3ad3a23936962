//! Every error of the API has one shape, RFC 9457 (`application/problem+json`).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use enisle_api::bounds::MAX_DETAIL_BYTES;
use enisle_api::types::problem::{Problem as Said, ProblemKind};
use serde::Serialize;

use crate::homes::job::Unsealable;
use crate::homes::pool::AdmitError;
use crate::runs::run::RunError;
use crate::share::Exhausted;
use crate::tenants::policy::{BadName, StoreError};

/// An error for the client: what was wrong, what was expected, and what to do.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Problem {
    said: Said,
    #[serde(skip)]
    retry_after_secs: Option<u64>,
}

impl Problem {
    fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        // The detail may repeat what the client sent, and the client needs no second copy of that.
        if detail.len() > MAX_DETAIL_BYTES {
            detail.truncate(detail.floor_char_boundary(MAX_DETAIL_BYTES));
            detail.push('…');
        }
        Self { said: kind.says(detail), retry_after_secs: None }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::BadRequest, detail)
    }

    /// Whether the problem has this detail.
    pub(crate) fn is(&self, detail: &str) -> bool {
        self.said.detail == detail
    }

    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::Conflict, detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::Forbidden, detail)
    }

    pub(crate) fn expelled(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::Expelled, detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::NotFound, detail)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let detail = "the resource exists, but does not support this method; see GET /openapi.json";
        Self::new(ProblemKind::MethodNotAllowed, detail)
    }

    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::TooLarge, detail)
    }

    pub(crate) fn too_slow(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::TooSlow, detail)
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self { retry_after_secs: Some(1), ..Self::new(ProblemKind::NoCapacity, detail) }
    }

    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::Internal, detail)
    }
}

impl From<RunError> for Problem {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Quota(over) => {
                let problem = Self::new(ProblemKind::Quota, over.to_string());
                Self { retry_after_secs: Some(over.retry_after_secs()), ..problem }
            }
            RunError::Expelled(expelled) | RunError::Admit(AdmitError::Expelled(expelled)) => {
                Self::expelled(expelled.to_string())
            }
            RunError::Admit(error) => Self::unavailable(error.to_string()),
            RunError::Draining | RunError::Unrecorded(_) | RunError::Unsealable(Unsealable::NoRoom(_)) => {
                Self::unavailable(error.to_string())
            }
            // The run has ended, and a retry would run the script again, so the client is not told
            // to retry.
            RunError::Answer { .. } => Self::new(ProblemKind::NoRoom, error.to_string()),
            RunError::Unsealable(_) | RunError::Interrupted => Self::internal(error.to_string()),
        }
    }
}

impl From<Exhausted> for Problem {
    fn from(error: Exhausted) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl From<BadName> for Problem {
    fn from(error: BadName) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::internal(error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.said.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(secs) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        response
    }
}
