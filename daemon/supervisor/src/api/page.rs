//! Long lists, a page at a time: `?after=KEY&limit=N`. An answer that is not the last one says in
//! `next` what `after` the following request has. A page is bounded in items and in bytes.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use enisle_api::bounds::{MOST_ITEMS, PAGE_BYTES};
use serde::{Deserialize, Serialize};

use super::problem::Problem;

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
        let limit = limit.unwrap_or(MOST_ITEMS);
        if limit == 0 || limit > MOST_ITEMS {
            return Err(Problem::bad_request(format!("limit is {limit}; it has to be between 1 and {MOST_ITEMS}")));
        }
        Ok(Self { after, limit })
    }

    /// The answer, from one item more than the page has. What is left of the items after
    /// [`PAGE_BYTES`] is the next page's, so that an item alone says how long a page can get.
    pub(super) fn write<T, K: Serialize, V: Serialize>(
        &self,
        name: &str,
        items: Vec<T>,
        key: impl Fn(&T) -> K,
        show: impl Fn(&T) -> V,
    ) -> Vec<u8> {
        let count = items.len();
        let mut page = format!("{{\"{name}\":[").into_bytes();
        let (mut shown, mut last) = (0, None);
        for item in items.iter().take(self.limit) {
            if page.len() >= PAGE_BYTES {
                break;
            }
            page.extend_from_slice(if shown == 0 { b"" } else { b"," });
            // A vector takes everything, and nothing here fails to serialise.
            let _ = serde_json::to_writer(&mut page, &show(item));
            (shown, last) = (shown + 1, Some(item));
        }
        page.push(b']');
        if let Some(last) = last.filter(|_| shown < count) {
            page.extend_from_slice(b",\"next\":");
            let _ = serde_json::to_writer(&mut page, &key(last));
        }
        page.push(b'}');
        page
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn page(limit: usize, items: Vec<String>) -> Value {
        let page = Page { after: None, limit }.write("items", items, String::len, String::clone);
        serde_json::from_slice(&page).unwrap()
    }

    #[test]
    fn a_page_says_where_the_next_one_begins_and_the_last_one_does_not() {
        let items = |count| vec!["x".to_owned(); count];
        assert_eq!(page(2, items(3)), json!({ "items": ["x", "x"], "next": 1 }));
        assert_eq!(page(2, items(2)), json!({ "items": ["x", "x"] }));
        assert_eq!(page(2, Vec::new()), json!({ "items": [] }));
    }

    #[test]
    fn the_query_of_every_list_is_as_it_is_described() {
        for id in ["listTenants", "listWorkers"] {
            crate::api::described::reads_the_query_of::<Wanted>(id);
        }
    }

    #[test]
    fn a_page_of_large_items_has_fewer() {
        let page = page(100, (0..101).map(|n| "x".repeat(PAGE_BYTES / 3 + n)).collect());
        assert_eq!(page["items"].as_array().map(Vec::len), Some(3));
        assert_eq!(page["next"], PAGE_BYTES / 3 + 2);
    }
}
