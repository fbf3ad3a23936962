//! Every error of the API: one shape, RFC 9457 (`application/problem+json`).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use enisle_api::bounds::MAX_DETAIL_BYTES;
use serde::Serialize;

use crate::homes::job::Unsealable;
use crate::homes::pool::AdmitError;
use crate::runs::run::RunError;
use crate::share::Exhausted;
use crate::tenants::policy::{BadName, StoreError};

/// What was wrong, what was expected, what to do.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    /// `urn:enisle:problem:` and a word that programs can compare.
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip)]
    retry_after_secs: Option<u64>,
}

impl Problem {
    fn new(status: StatusCode, kind: &str, title: &'static str, detail: impl Into<String>) -> Self {
        let kind = format!("urn:enisle:problem:{kind}");
        let mut detail = detail.into();
        // It may repeat what the client sent, which is the client's to keep.
        if detail.len() > MAX_DETAIL_BYTES {
            detail.truncate(detail.floor_char_boundary(MAX_DETAIL_BYTES));
            detail.push('…');
        }
        Self { kind, title, status: status.as_u16(), detail, retry_after_secs: None }
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "The request is not right", detail)
    }

    /// It says exactly that.
    pub(crate) fn is(&self, detail: &str) -> bool {
        self.detail == detail
    }

    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "It is something else already", detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "This peer may not do that", detail)
    }

    pub(crate) fn expelled(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "expelled", "The tenant is expelled", detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", detail)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let detail = "the resource is there, but not for this method; see the API's documentation";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Not with this method", detail)
    }

    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The request is too large", detail)
    }

    pub(crate) fn too_slow(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "The request did not arrive in time", detail)
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "no-capacity", "There is no capacity", detail);
        problem.retry_after_secs = Some(1);
        problem
    }

    pub(crate) fn internal(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The daemon could not do it", detail)
    }
}

impl From<RunError> for Problem {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Quota(over) => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                let mut problem = Self::new(status, "quota", "The tenant is over its quota", over.to_string());
                problem.retry_after_secs = Some(over.retry_after_secs());
                problem
            }
            RunError::Expelled(expelled) | RunError::Admit(AdmitError::Expelled(expelled)) => {
                Self::expelled(expelled.to_string())
            }
            RunError::Admit(error) => Self::unavailable(error.to_string()),
            RunError::Draining | RunError::Unrecorded(_) | RunError::Unsealable(Unsealable::NoRoom(_)) => {
                Self::unavailable(error.to_string())
            }
            // The run has ended: to try again would be to run it again.
            RunError::Answer { .. } => {
                let status = StatusCode::INSUFFICIENT_STORAGE;
                Self::new(status, "no-room", "There is no room for the answer", error.to_string())
            }
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
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(secs) = self.retry_after_secs {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        response
    }
}
