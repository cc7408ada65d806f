//! What commands print: aligned tables or JSON on stdout, errors and progress on stderr.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::sync::mpsc;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    pub json: bool,
}

/// Rows of cells under a header, as wide as their contents.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Output {
    /// Prints `json` or, for people, `text`.
    pub fn print(self, value: &Value, text: &str) {
        let printed = if self.json { format!("{value:#}") } else { text.trim_end().to_owned() };
        if !printed.is_empty() {
            self.print_raw(format!("{printed}\n").as_bytes());
        }
    }

    /// A closed pipe (`hawser volume ls | head -1`) is no failure.
    pub fn print_raw(self, bytes: &[u8]) {
        let _ = std::io::stdout().lock().write_all(bytes);
    }

    /// Prints a list: a JSON array, or a table, or what to say when it is empty.
    pub fn print_list(self, values: Vec<Value>, table: &Table, when_empty: &str) {
        if values.is_empty() {
            self.print(&json!([]), when_empty);
        } else {
            self.print(&Value::Array(values), &table.to_string());
        }
    }

    pub fn print_error(self, kind: &str, message: &str) {
        let mut stderr = std::io::stderr().lock();
        let _ = if self.json {
            writeln!(stderr, "{}", json!({"error": {"kind": kind, "message": message}}))
        } else {
            writeln!(stderr, "hawser: {message}")
        };
    }

    /// Runs `work`; when it takes longer than a second and stderr is a terminal, shows what is going on.
    pub fn progress<T: Send>(self, doing: &str, work: impl FnOnce() -> T + Send) -> T {
        if self.json || !std::io::stderr().is_terminal() {
            return work();
        }
        let (done, waits) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if waits.recv_timeout(Duration::from_secs(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
                    let bar = ProgressBar::new_spinner().with_message(doing.to_owned());
                    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                        bar.set_style(style);
                    }
                    bar.enable_steady_tick(Duration::from_millis(120));
                    // Either end of the work: a value, or the sender dropped by a panic.
                    let _ = waits.recv();
                    bar.finish_and_clear();
                }
            });
            let result = work();
            drop(done);
            result
        })
    }
}

impl Table {
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let pad = width - cell.chars().count();
                line.push_str(cell);
                line.push_str(&" ".repeat(pad + 2));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Names may hold tabs, newlines and anything of Unicode; none of it may move the terminal's cursor.
pub fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_control_characters_are_shown() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(["a\nb".to_owned(), "1GiB".to_owned()]);
        table.row(["größe".to_owned(), "2GiB".to_owned()]);
        assert_eq!(table.to_string(), "NAME   SIZE\na\\nb   1GiB\ngröße  2GiB\n");
    }
}
