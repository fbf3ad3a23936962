//! Long lists, a page at a time: `?after=KEY&limit=N`. Every page but the last has a field `next`:
//! the value of `after` for the next page. A page is bounded in items and in bytes.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use enisle_api::bounds::{MOST_ITEMS, PAGE_BYTES};
use serde::{Deserialize, Serialize};

use super::problem::Problem;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    after: Option<String>,
    limit: Option<usize>,
}

/// A requested page: the items after the key `after`, at most `limit` of them.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) after: Option<String>,
    pub(super) limit: usize,
}

impl Page {
    pub(super) fn of(wanted: Result<Query<PageQuery>, QueryRejection>) -> Result<Self, Problem> {
        let Query(PageQuery { after, limit }) = wanted
            .map_err(|error| Problem::bad_request(format!("{error}; the parameters are after=KEY and limit=N")))?;
        let limit = limit.unwrap_or(MOST_ITEMS);
        if limit == 0 || limit > MOST_ITEMS {
            return Err(Problem::bad_request(format!("limit is {limit}; it must be between 1 and {MOST_ITEMS}")));
        }
        Ok(Self { after, limit })
    }

    /// Writes the page. `items` has one item more than `limit`, if there are that many. Once the
    /// page has [`PAGE_BYTES`], the remaining items are left for the next page, so a page exceeds
    /// [`PAGE_BYTES`] by at most one item.
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
            // Writing to a vector cannot fail, and neither can serialising these types.
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
    fn every_page_but_the_last_says_where_the_next_one_begins() {
        let items = |count| vec!["x".to_owned(); count];
        assert_eq!(page(2, items(3)), json!({ "items": ["x", "x"], "next": 1 }));
        assert_eq!(page(2, items(2)), json!({ "items": ["x", "x"] }));
        assert_eq!(page(2, Vec::new()), json!({ "items": [] }));
    }

    #[test]
    fn the_query_of_every_list_is_the_documented_one() {
        for id in ["listTenants", "listWorkers"] {
            crate::api::described::reads_the_query_of::<PageQuery>(id);
        }
    }

    #[test]
    fn a_page_of_large_items_has_fewer_items() {
        let page = page(100, (0..101).map(|n| "x".repeat(PAGE_BYTES / 3 + n)).collect());
        assert_eq!(page["items"].as_array().map(Vec::len), Some(3));
        assert_eq!(page["next"], PAGE_BYTES / 3 + 2);
    }
}
