//! Which uid acts for a tenant according to `[[peers]]`. What a client may do is decided in
//! `api::peer`.

use crate::config::Peer as Rule;

/// The uid that acts for a tenant, by the most specific rule that names the tenant; `None` if no
/// rule does.
pub(crate) fn acting_uid(rules: &[Rule], tenant: &str) -> Option<u32> {
    let patterns = rules.iter().flat_map(|rule| rule.tenants.iter().map(|pattern| (pattern, rule.uid)));
    let matching = patterns.filter(|(pattern, _)| pattern.covers(tenant));
    matching.max_by_key(|(pattern, _)| pattern.exactness()).map(|(_, uid)| uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_rule_that_names_a_tenant_decides() {
        let rule = |uid, pattern: &str| Rule {
            uid,
            tenants: vec![pattern.parse().unwrap()],
            operate: false,
            share_percent: None,
        };
        let rules = [rule(1, "*"), rule(2, "acme-*"), rule(3, "acme-x")];
        for (tenant, uid) in [("acme-x", 3), ("acme-y", 2), ("acme-", 2), ("other", 1)] {
            assert_eq!(acting_uid(&rules, tenant), Some(uid), "{tenant}");
        }
        assert_eq!(acting_uid(&rules[1..], "other"), None);
    }
}
