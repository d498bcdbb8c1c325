//! Maps the names of roles in data sets, and the user's own (`--role NAME=ROLE`), to speakers.

use super::example::Role;
use crate::error::{Error, Result};
use crate::format::beginning;

/// Known names and their roles. They are compared in lower case, with `_` for `-` and space.
pub(super) const NAMES: &[(&str, Role)] = &[
    ("system", Role::System),
    ("developer", Role::System),
    ("system_prompt", Role::System),
    ("user", Role::User),
    ("human", Role::User),
    ("prompter", Role::User),
    ("customer", Role::User),
    ("client", Role::User),
    ("question", Role::User),
    ("assistant", Role::Assistant),
    ("gpt", Role::Assistant),
    ("chatgpt", Role::Assistant),
    ("model", Role::Assistant),
    ("bot", Role::Assistant),
    ("chatbot", Role::Assistant),
    ("ai", Role::Assistant),
    ("bing", Role::Assistant),
    ("bard", Role::Assistant),
    ("claude", Role::Assistant),
    ("answer", Role::Assistant),
    ("tool", Role::Tool),
    ("function", Role::Tool),
    ("observation", Role::Tool),
    ("function_response", Role::Tool),
    ("function_result", Role::Tool),
    ("tool_response", Role::Tool),
    ("tool_result", Role::Tool),
    ("tool_output", Role::Tool),
    ("ipython", Role::Tool),
    ("environment", Role::Tool),
];

/// Names of turns whose whole text is a tool call.
pub(super) const CALLS: &[&str] = &["function_call", "tool_call", "tool_calls", "function_calls"];

/// The user's own names, in the order given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoleMap {
    names: Vec<(String, (Role, bool))>,
    /// The values of `--role` as given by the user.
    written: Vec<String>,
}

impl RoleMap {
    /// Reads the values of repeated `--role` options.
    pub fn parse(rules: &[String]) -> Result<RoleMap> {
        let parse = |rule: &String| {
            let cure = "Write --role NAME=ROLE with system, user, assistant, tool or tool_call, for example --role patient=user.";
            let wrong = |found: &str| Error::usage(format!("expected NAME=ROLE, found {found}")).cure(cure);
            let (name, role) = rule.rsplit_once('=').ok_or_else(|| wrong(&format!("`{rule}`")))?;
            let role = usual(role).ok_or_else(|| wrong(&format!("the unknown role `{role}` in `{rule}`")))?;
            if name.is_empty() { Err(wrong(&format!("no name in `{rule}`"))) } else { Ok((name.to_owned(), role)) }
        };
        Ok(RoleMap { names: rules.iter().map(parse).collect::<Result<_>>()?, written: rules.to_vec() })
    }

    /// The values of `--role` that the names were parsed from.
    pub(crate) fn rules(&self) -> &[String] {
        &self.written
    }

    /// Whether the user defined no roles.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether the user defined this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|(own, _)| own == name.trim() || own == name)
    }

    /// Returns the role of a name, and whether the whole text of such a turn is a tool call.
    pub fn find(&self, name: &str, path: &str) -> Result<(Role, bool)> {
        let own = self.names.iter().find(|(own, _)| own == name.trim() || own == name).map(|(_, role)| *role);
        own.or_else(|| usual(name)).ok_or_else(|| {
            let found = beginning(name, 40);
            // A shortened name would not match the row's.
            let name = if found == name { name } else { "NAME" };
            let known = "system, user, assistant, tool, human, gpt, function_call or observation";
            Error::new(format!("`{path}`: expected a role ({known}), found `{found}`"))
                .cure(format!("Map it to a role: --role '{name}=user' or --role '{name}=assistant'."))
        })
    }
}

/// Returns the role of a known name, ignoring the user's own.
pub(super) fn usual(name: &str) -> Option<(Role, bool)> {
    let name = name.trim().to_lowercase().replace(['-', ' '], "_");
    if CALLS.contains(&name.as_str()) {
        return Some((Role::Assistant, true));
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, role)| (*role, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_in_any_spelling_and_the_users_own_come_first() {
        for (name, expected) in NAMES {
            for name in [(*name).to_owned(), name.to_uppercase(), format!(" {} ", name.replace('_', "-"))] {
                assert_eq!(RoleMap::default().find(&name, "").unwrap(), (*expected, false), "{name}");
            }
        }
        let map = RoleMap::parse(&["Doctor=assistant".to_owned(), "user=tool".to_owned()]).unwrap();
        assert_eq!(map.find("Doctor", "").unwrap().0, Role::Assistant);
        assert_eq!((map.find("user", "").unwrap().0, map.find("User", "").unwrap().0), (Role::Tool, Role::User));
        let error = map.find("wizard", "messages[0].role").unwrap_err().to_string();
        assert!(error.contains("found `wizard`") && error.contains("--role 'wizard=user'"), "{error}");
        for bad in ["Doctor", "=user", "a=king"] {
            assert_eq!(RoleMap::parse(&[bad.to_owned()]).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
