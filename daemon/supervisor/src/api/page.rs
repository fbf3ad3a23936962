//! Long lists, a page at a time: `?after=KEY&limit=N`. An answer that is not the last one says in
//! `next` what `after` the following request has.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::problem::Problem;

/// As many as are shown without others waiting for it.
const MOST: usize = 100;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    after: Option<String>,
    limit: Option<usize>,
}

/// A page that is asked for: it begins after that key.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) after: Option<String>,
    pub(super) limit: usize,
}

impl Page {
    pub(super) fn of(wanted: Result<Query<Wanted>, QueryRejection>) -> Result<Self, Problem> {
        let Query(Wanted { after, limit }) = wanted
            .map_err(|error| Problem::bad_request(format!("{error}; the parameters are after=KEY and limit=N")))?;
        let limit = limit.unwrap_or(MOST);
        if limit == 0 || limit > MOST {
            return Err(Problem::bad_request(format!("limit is {limit}; it has to be between 1 and {MOST}")));
        }
        Ok(Self { after, limit })
    }

    /// The answer, from one item more than the page has.
    pub(super) fn show<T, K: Serialize>(
        &self,
        name: &str,
        mut items: Vec<T>,
        key: impl Fn(&T) -> K,
        show: impl Fn(&T) -> Value,
    ) -> Value {
        let more = items.len() > self.limit;
        items.truncate(self.limit);
        let mut answer = Map::new();
        answer.insert(name.to_owned(), items.iter().map(show).collect());
        if let Some(last) = items.last().filter(|_| more) {
            answer.insert("next".to_owned(), serde_json::to_value(key(last)).unwrap_or_default());
        }
        answer.into()
    }
}
