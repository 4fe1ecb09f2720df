//! Reads `kvd.toml` into settings.
//!
//! The table is walked by hand rather than by serde, because an operator deserves file, line, key and the nearest
//! known key, also for what only later turns out not to fit.

use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::check_cache_name;
use super::error::ConfigError;
use super::source::{
    ACCESS_KEYS, CACHE_KEYS, Draft, Given, HOST_KEYS, METRICS_KEYS, Settings, nearest, origin_at,
};

/// Reads one file.
pub(super) fn read(path: &Path) -> Result<Draft, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    let reader = Reader { path, text: &text };
    let table = DeTable::parse(&text).map_err(|e| ConfigError::Syntax {
        origin: origin_at(path, &text, e.span().map_or(0, |s| s.start)),
        problem: e.message().to_owned(),
    })?;
    reader.host(table.get_ref())
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Reader<'_> {
    fn host(&self, table: &DeTable<'_>) -> Result<Draft, ConfigError> {
        let mut draft = Draft::default();
        for (key, value) in table {
            let name: &str = key.get_ref();
            match name {
                "access" => {
                    let access = self.table(name, value)?;
                    for (key, given) in self.settings(access, "access", &ACCESS_KEYS)? {
                        draft.host.insert(format!("access.{key}"), given);
                    }
                }
                "metrics" => {
                    let metrics = self.table(name, value)?;
                    for (key, given) in self.settings(metrics, "metrics", &METRICS_KEYS)? {
                        draft.host.insert(format!("metrics.{key}"), given);
                    }
                }
                "default" => {
                    draft.default = self.settings(self.table(name, value)?, "default", &CACHE_KEYS)?;
                }
                "caches" => self.caches(self.table(name, value)?, &mut draft)?,
                _ if HOST_KEYS.iter().any(|(known, _)| *known == name) => {
                    draft.host.insert(name.to_owned(), self.given(name, value)?);
                }
                _ => {
                    let known = HOST_KEYS.iter().map(|(known, _)| *known).chain(["default", "caches"]);
                    return Err(self.unknown(key, name.to_owned(), nearest(name, known)));
                }
            }
        }
        Ok(draft)
    }

    fn caches(&self, table: &DeTable<'_>, draft: &mut Draft) -> Result<(), ConfigError> {
        for (key, value) in table {
            let name: &str = key.get_ref();
            let path = format!("caches.{name}");
            let origin = origin_at(self.path, self.text, key.span().start);
            if let Err(problem) = check_cache_name(name) {
                return Err(ConfigError::Value {
                    origin,
                    key: "caches".to_owned(),
                    value: name.to_owned(),
                    problem,
                });
            }
            let settings = self.settings(self.table(&path, value)?, &path, &CACHE_KEYS)?;
            draft.caches.insert(name.to_owned(), (origin, settings));
        }
        Ok(())
    }

    fn settings(&self, table: &DeTable<'_>, path: &str, known: &[&str]) -> Result<Settings, ConfigError> {
        let mut settings = Settings::new();
        for (key, value) in table {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                return Err(self.unknown(
                    key,
                    format!("{path}.{name}"),
                    nearest(name, known.iter().copied()),
                ));
            }
            settings.insert(name.to_owned(), self.given(&format!("{path}.{name}"), value)?);
        }
        Ok(settings)
    }

    fn given(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Given, ConfigError> {
        let origin = origin_at(self.path, self.text, value.span().start);
        let text = match value.get_ref() {
            DeValue::Array(items) => {
                let texts: Option<Vec<String>> =
                    items.iter().map(|item| scalar_text(item.get_ref())).collect();
                texts.map(|texts| texts.join(","))
            }
            scalar => scalar_text(scalar),
        };
        let found = value.get_ref().type_str();
        text.map(|text| Given { text, origin: origin.clone() }).ok_or_else(|| ConfigError::Value {
            origin,
            key: key.to_owned(),
            value: self.text.get(value.span()).unwrap_or_default().to_owned(),
            problem: format!("a text, a number or a truth value was expected, this is a {found}"),
        })
    }

    fn table<'t>(&self, key: &str, value: &'t Spanned<DeValue<'_>>) -> Result<&'t DeTable<'t>, ConfigError> {
        // Only shortens the lifetime of the borrowed text; a table is covariant in it.
        let value: &'t Spanned<DeValue<'t>> = value;
        value.get_ref().as_table().ok_or_else(|| ConfigError::Value {
            origin: origin_at(self.path, self.text, value.span().start),
            key: key.to_owned(),
            value: self.text.get(value.span()).unwrap_or_default().to_owned(),
            problem: format!("a table was expected: write [{key}] on a line of its own"),
        })
    }

    fn unknown(&self, at: &Spanned<toml::de::DeString<'_>>, key: String, hint: String) -> ConfigError {
        ConfigError::UnknownKey { origin: origin_at(self.path, self.text, at.span().start), key, hint }
    }
}

fn scalar_text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    }
}
