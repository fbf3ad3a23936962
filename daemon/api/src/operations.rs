//! Every operation of the API, a row each. The daemon's router has exactly these routes, which a
//! test of the daemon compares.

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

/// Which peers an operation is for. Root and the daemon's own uid may do everything.
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
            Self::Anybody => "Anybody may ask.",
            Self::Named => "For every uid that a rule of `[[peers]]` names.",
            Self::Actor => "For uids that may act for the tenant (`[[peers]] tenants`).",
            Self::Operator => "For operators (`[[peers]] operate = true`).",
        }
    }
}

/// A parameter behind the `?` of a path.
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
    /// From 1 to this many.
    UpTo(usize),
}

/// A body of a request or an answer, by its type in [`crate::types`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// `text/plain`.
    Text,
    /// A document without a type here.
    Document,
    /// `application/x-ndjson`: events, one a line.
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

/// One operation. Where `GET` is answered, `HEAD` is answered too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Names it for programs that are generated from the document.
    pub id: &'static str,
    pub method: Method,
    /// With the names of its variable parts in braces.
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
        summary: "Begin behind this item: the `next` of the page before.",
    },
    Parameter {
        name: "limit",
        value: ParameterValue::UpTo(MOST_ITEMS),
        required: false,
        summary: "At most this many items. A page takes no item after 128 KiB either.",
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
        summary: "Whether the daemon is there.",
        who: Who::Anybody,
        query: &[],
        request: None,
        answers: &[ok("It is.", Body::Text)],
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
        summary: "Which versions run.",
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
        answers: &[ok("What the peer may know.", Body::Info)],
        problems: &[Forbidden],
    },
    Operation {
        id: "listTenants",
        method: Method::Get,
        path: "/v1/tenants",
        summary: "Every tenant that is known, a page.",
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
        summary: "One tenant: its policy and use, its cordon; operators also see every reason for it.",
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
        summary: "Sets the policy of a tenant, as a whole.",
        who: Who::Operator,
        query: &[],
        request: Some(Body::PolicyRequest),
        answers: &[ok("It is set, and its line of the audit log is on the disk.", Body::TenantView)],
        problems: &[BadRequest, Forbidden, TooSlow, TooLarge, Internal, NoCapacity],
    },
    Operation {
        id: "orderCordon",
        method: Method::Put,
        path: "/v1/tenants/{tenant}/cordon",
        summary: "Orders that a tenant lives at least that far out.",
        who: Who::Operator,
        query: &[],
        request: Some(Body::CordonRequest),
        answers: &[ok("It is ordered, and its line of the audit log is on the disk.", Body::TenantView)],
        problems: &[BadRequest, Forbidden, TooSlow, TooLarge, Internal, NoCapacity],
    },
    Operation {
        id: "liftCordon",
        method: Method::Delete,
        path: "/v1/tenants/{tenant}/cordon",
        summary: "Lifts the order, and forgives what has counted against the tenant.",
        who: Who::Operator,
        query: &[Parameter {
            name: "reason",
            value: ParameterValue::Text,
            required: true,
            summary: "Why: 1 to 1,024 bytes, which are written to the audit log.",
        }],
        request: None,
        answers: &[ok("It is lifted, and its line of the audit log is on the disk.", Body::TenantView)],
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
        answers: &[ok("The run has ended; how, says `outcome`.", Body::Answer)],
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
        summary: "Registers a script, whose isolate stays warm between its runs.",
        who: Who::Actor,
        query: &[Parameter {
            name: "replace",
            value: ParameterValue::Flag,
            required: false,
            summary: "1: an id that has other content gets this one, as a new version.",
        }],
        request: Some(Body::ScriptRequest),
        answers: &[
            ok("It was registered already, with the same content.", Body::Script),
            Answered { status: 201, summary: "It is registered.", body: Some(Body::Script) },
        ],
        problems: &[BadRequest, Forbidden, Expelled, TooSlow, Conflict, TooLarge, Quota, Internal, NoCapacity],
    },
    Operation {
        id: "forgetScript",
        method: Method::Delete,
        path: "/v1/tenants/{tenant}/scripts/{id}",
        summary: "Forgets a script.",
        who: Who::Actor,
        query: &[],
        request: None,
        answers: &[Answered { status: 204, summary: "It is forgotten.", body: None }],
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
        answers: &[ok("The run has ended; how, says `outcome`.", Body::Answer)],
        problems: &[BadRequest, Forbidden, Expelled, NotFound, TooSlow, TooLarge, Quota, Internal, NoCapacity, NoRoom],
    },
    Operation {
        id: "audit",
        method: Method::Get,
        path: "/v1/audit",
        summary: "Where the audit log is, and its last line.",
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
        summary: "The worker processes, a page.",
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
        summary: "What happened, one JSON object a line.",
        who: Who::Operator,
        query: &[Parameter {
            name: "follow",
            value: ParameterValue::Flag,
            required: false,
            summary: "1: the answer goes on with what happens next, until the daemon ends.",
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
    fn every_operation_has_an_id_and_a_route_of_its_own() {
        let ids: BTreeSet<_> = OPERATIONS.iter().map(|operation| operation.id).collect();
        let routes: BTreeSet<_> = OPERATIONS.iter().map(|operation| (operation.path, operation.method)).collect();
        assert_eq!((ids.len(), routes.len()), (OPERATIONS.len(), OPERATIONS.len()));
    }

    #[test]
    fn every_kind_of_problem_but_that_of_the_wrong_method_belongs_to_an_operation() {
        let told: BTreeSet<_> = OPERATIONS.iter().flat_map(|operation| operation.problems).copied().collect();
        let mut all: BTreeSet<_> = ProblemKind::ALL.into_iter().collect();
        all.remove(&ProblemKind::MethodNotAllowed);
        assert_eq!(told, all);
        for operation in OPERATIONS {
            assert!(operation.problems.is_sorted(), "{}", operation.id);
        }
    }
}
