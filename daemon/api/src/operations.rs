//! Every operation of the API, one row each. The daemon's router has exactly these routes: a test
//! of the daemon compares them.

use crate::bounds::MOST_ITEMS;
use crate::types::problem::ProblemKind::{
    self, BadRequest, Conflict, Expelled, Forbidden, Internal, NoCapacity, NoRoom, NotFound, Quota, TooLarge, TooSlow,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Method {
    Get,
    Put,
    Post,
    Delete,
}

impl Method {
    pub const ALL: [Self; 4] = [Self::Get, Self::Put, Self::Post, Self::Delete];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// Which peers may call an operation. Root and the daemon's own uid may call every operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Anybody,
    /// A uid that any rule of `[[peers]]` names.
    Named,
    /// A uid that may act for the tenant.
    Actor,
    Operator,
}

impl Who {
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Anybody => "For every peer.",
            Self::Named => "For every uid that a rule of `[[peers]]` names.",
            Self::Actor => "For uids that may act for the tenant (`[[peers]] tenants`).",
            Self::Operator => "For operators (`[[peers]] operate = true`).",
        }
    }
}

/// A query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    pub name: &'static str,
    pub value: ParameterValue,
    pub required: bool,
    pub summary: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterValue {
    /// 0 or 1.
    Flag,
    Text,
    /// From 1 to this number.
    UpTo(usize),
}

/// The body of a request or an answer, by its type in [`crate::types`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// `text/plain`.
    Text,
    /// A document that has no type here.
    Document,
    /// `application/x-ndjson`: one event a line.
    Events,
    AuditHead,
    Answer,
    CordonRequest,
    Info,
    LoadRequest,
    PolicyRequest,
    RunRequest,
    Script,
    ScriptRequest,
    TenantPage,
    TenantView,
    Version,
    WorkerPage,
}

/// An answer that is not a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    pub status: u16,
    pub summary: &'static str,
    pub body: Option<Body>,
}

/// One operation. Every `GET` also answers `HEAD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// The name for generated clients.
    pub id: &'static str,
    pub method: Method,
    /// With the names of its variables in braces.
    pub path: &'static str,
    pub summary: &'static str,
    pub who: Who,
    pub query: &'static [Parameter],
    pub request: Option<Body>,
    pub answers: &'static [Answered],
    pub problems: &'static [ProblemKind],
}

const PAGE: &[Parameter] = &[
    Parameter {
        name: "after",
        value: ParameterValue::Text,
        required: false,
        summary: "Begin after this item: the `next` of the previous page.",
    },
    Parameter {
        name: "limit",
        value: ParameterValue::UpTo(MOST_ITEMS),
        required: false,
        summary: "At most this many items. A page also ends once it has 128 KiB.",
    },
];

const fn ok(summary: &'static str, body: Body) -> Answered {
    Answered { status: 200, summary, body: Some(body) }
}

/// Every operation, in the order of the document.
pub const OPERATIONS: &[Operation] = &[
    Operation {
        id: "ping",
        method: Method::Get,
        path: "/_ping",
        summary: "Checks that the daemon is running.",
        who: Who::Anybody,
        query: &[],
        request: None,
        answers: &[ok("The daemon is running.", Body::Text)],
        problems: &[],
    },
    Operation {
        id: "document",
        method: Method::Get,
        path: "/openapi.json",
        summary: "This document.",
        who: Who::Named,
        query: &[],
        request: None,
        answers: &[ok("An OpenAPI 3.1 document.", Body::Document)],
        problems: &[Forbidden],
    },
    Operation {
        id: "version",
        method: Method::Get,
        path: "/v1/version",
        summary: "The running versions.",
        who: Who::Named,
        query: &[],
        request: None,
        answers: &[ok("The versions.", Body::Version)],
        problems: &[Forbidden],
    },
    Operation {
        id: "info",
        method: Method::Get,
        path: "/v1/info",
        summary: "Defaults and outcomes; for operators also posture, capacity and counts.",
        who: Who::Named,
        query: &[],
        request: None,
        answers: &[ok("What the peer may see.", Body::Info)],
        problems: &[Forbidden],
    },
    Operation {
        id: "listTenants",
        method: Method::Get,
        path: "/v1/tenants",
        summary: "Every known tenant, by page.",
        who: Who::Operator,
        query: PAGE,
        request: None,
        answers: &[ok("A page.", Body::TenantPage)],
        problems: &[BadRequest, Forbidden, Internal, NoCapacity],
    },
    Operation {
        id: "showTenant",
        method: Method::Get,
        path: "/v1/tenants/{tenant}",
        summary: "One tenant: its policy, usage and cordon; operators also see the reasons for the cordon.",
        who: Who::Actor,
        query: &[],
        request: None,
        answers: &[ok("The tenant.", Body::TenantView)],
        problems: &[BadRequest, Forbidden, NotFound, Internal, NoCapacity],
    },
    Operation {
        id: "setPolicy",
        method: Method::Put,
        path: "/v1/tenants/{tenant}",
        summary: "Replaces the whole policy of a tenant.",
        who: Who::Operator,
        query: &[],
        request: Some(Body::PolicyRequest),
        answers: &[ok("The policy is set, and its audit log entry is on disk.", Body::TenantView)],
        problems: &[BadRequest, Forbidden, TooSlow, TooLarge, Internal, NoCapacity],
    },
    Operation {
        id: "orderCordon",
        method: Method::Put,
        path: "/v1/tenants/{tenant}/cordon",
        summary: "Orders a tenant to at least a cordon level.",
        who: Who::Operator,
        query: &[],
        request: Some(Body::CordonRequest),
        answers: &[ok("The order holds, and its audit log entry is on disk.", Body::TenantView)],
        problems: &[BadRequest, Forbidden, TooSlow, TooLarge, Internal, NoCapacity],
    },
    Operation {
        id: "liftCordon",
        method: Method::Delete,
        path: "/v1/tenants/{tenant}/cordon",
        summary: "Lifts the order, and clears everything that has counted against the tenant.",
        who: Who::Operator,
        query: &[Parameter {
            name: "reason",
            value: ParameterValue::Text,
            required: true,
            summary: "The reason, 1 to 1,024 bytes; it is written to the audit log.",
        }],
        request: None,
        answers: &[ok("The order is lifted, and its audit log entry is on disk.", Body::TenantView)],
        problems: &[BadRequest, Forbidden, NotFound, TooLarge, Internal, NoCapacity],
    },
    Operation {
        id: "load",
        method: Method::Post,
        path: "/v1/tenants/{tenant}/load",
        summary: "Runs a script once, in a fresh isolate, and forgets it.",
        who: Who::Actor,
        query: &[],
        request: Some(Body::LoadRequest),
        answers: &[ok("The run has ended; `outcome` says how.", Body::Answer)],
        problems: &[BadRequest, Forbidden, Expelled, TooSlow, TooLarge, Quota, Internal, NoCapacity, NoRoom],
    },
    Operation {
        id: "showScript",
        method: Method::Get,
        path: "/v1/tenants/{tenant}/scripts/{id}",
        summary: "One registered script.",
        who: Who::Actor,
        query: &[],
        request: None,
        answers: &[ok("The script.", Body::Script)],
        problems: &[BadRequest, Forbidden, NotFound],
    },
    Operation {
        id: "registerScript",
        method: Method::Put,
        path: "/v1/tenants/{tenant}/scripts/{id}",
        summary: "Registers a script, whose isolate is kept between its runs.",
        who: Who::Actor,
        query: &[Parameter {
            name: "replace",
            value: ParameterValue::Flag,
            required: false,
            summary: "1: if the id has other content, replace it, as a new version.",
        }],
        request: Some(Body::ScriptRequest),
        answers: &[
            ok("The id was already registered with the same content.", Body::Script),
            Answered { status: 201, summary: "The script is registered.", body: Some(Body::Script) },
        ],
        problems: &[BadRequest, Forbidden, Expelled, TooSlow, Conflict, TooLarge, Quota, Internal, NoCapacity],
    },
    Operation {
        id: "forgetScript",
        method: Method::Delete,
        path: "/v1/tenants/{tenant}/scripts/{id}",
        summary: "Deletes a registered script.",
        who: Who::Actor,
        query: &[],
        request: None,
        answers: &[Answered { status: 204, summary: "The script is deleted.", body: None }],
        problems: &[BadRequest, Forbidden, NotFound],
    },
    Operation {
        id: "runScript",
        method: Method::Post,
        path: "/v1/tenants/{tenant}/scripts/{id}/run",
        summary: "Runs a registered script.",
        who: Who::Actor,
        query: &[],
        request: Some(Body::RunRequest),
        answers: &[ok("The run has ended; `outcome` says how.", Body::Answer)],
        problems: &[BadRequest, Forbidden, Expelled, NotFound, TooSlow, TooLarge, Quota, Internal, NoCapacity, NoRoom],
    },
    Operation {
        id: "audit",
        method: Method::Get,
        path: "/v1/audit",
        summary: "Where the audit log is, and its last entry.",
        who: Who::Operator,
        query: &[],
        request: None,
        answers: &[ok("The end of the log.", Body::AuditHead)],
        problems: &[Forbidden],
    },
    Operation {
        id: "listWorkers",
        method: Method::Get,
        path: "/v1/workers",
        summary: "The worker processes, by page.",
        who: Who::Operator,
        query: PAGE,
        request: None,
        answers: &[ok("A page.", Body::WorkerPage)],
        problems: &[BadRequest, Forbidden, Internal, NoCapacity],
    },
    Operation {
        id: "events",
        method: Method::Get,
        path: "/v1/events",
        summary: "Events, one JSON object a line.",
        who: Who::Operator,
        query: &[Parameter {
            name: "follow",
            value: ParameterValue::Flag,
            required: false,
            summary: "1: the answer continues with new events until the daemon ends.",
        }],
        request: None,
        answers: &[ok("Lines, each an `EventLine`.", Body::Events)],
        problems: &[BadRequest, Forbidden],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_operation_has_its_own_id_and_route() {
        let ids: BTreeSet<_> = OPERATIONS.iter().map(|operation| operation.id).collect();
        let routes: BTreeSet<_> = OPERATIONS.iter().map(|operation| (operation.path, operation.method)).collect();
        assert_eq!((ids.len(), routes.len()), (OPERATIONS.len(), OPERATIONS.len()));
    }

    #[test]
    fn every_problem_except_method_not_allowed_belongs_to_an_operation() {
        let declared: BTreeSet<_> = OPERATIONS.iter().flat_map(|operation| operation.problems).copied().collect();
        let mut all: BTreeSet<_> = ProblemKind::ALL.into_iter().collect();
        all.remove(&ProblemKind::MethodNotAllowed);
        assert_eq!(declared, all);
        for operation in OPERATIONS {
            assert!(operation.problems.is_sorted(), "{}", operation.id);
        }
    }
}
