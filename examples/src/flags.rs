//! The rules that the programs' command lines share: variables without a value, and flags that
//! can't be used.

use std::ffi::OsString;
use std::fmt;

use clap::Parser;

/// A flag, or the variable in its place, that can't be used: the program ends with exit status 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageError(String);

impl UsageError {
    /// The fault of the flag, which may be given by a variable.
    pub fn new(flag: &str, variable: Option<&str>, wrong: impl fmt::Display) -> Self {
        match variable {
            Some(variable) => Self(format!("{flag} (or {variable}) {wrong}")),
            None => Self(format!("{flag} {wrong}")),
        }
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Reads the command line. A variable that is set and empty counts as not set: deployments write
/// `KCL_UNTIL_IDLE=""` for "no value".
///
/// Ends the process with exit status 2 and a message if the flags can't be used.
#[must_use]
pub fn parse<T: Parser>(arguments: impl IntoIterator<Item = OsString>) -> T {
    try_parse(arguments).unwrap_or_else(|error| error.exit())
}

/// The same, with the error as a value.
///
/// # Errors
/// The flags can't be used, or ask for help.
pub fn try_parse<T: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<T, clap::Error> {
    let mut command = T::command().mut_args(|argument| {
        let is_empty = |name| std::env::var_os(name).is_some_and(|value| value.is_empty());
        let empty = argument.get_env().is_some_and(is_empty);
        if empty { argument.env(None::<&str>) } else { argument }
    });
    let matches = command.try_get_matches_from_mut(arguments)?;
    T::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}
