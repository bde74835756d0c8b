//! Text in columns, for a terminal of a given width. Columns that matter least go first when there is no room.

use std::fmt::Write;

/// One column.
pub(super) struct Column {
    title: &'static str,
    right: bool,
    /// Columns with the highest number go first; 0 stays.
    dispensable: u8,
}

/// Text, to the left.
pub(super) fn left(title: &'static str) -> Column {
    Column { title, right: false, dispensable: 0 }
}

/// Numbers, to the right.
pub(super) fn right(title: &'static str) -> Column {
    Column { title, right: true, dispensable: 0 }
}

impl Column {
    /// Goes before columns of a lower order when the terminal is narrow.
    pub(super) fn dispensable(self, order: u8) -> Column {
        Column { dispensable: order, ..self }
    }
}

/// One row: its cells, and whether it needs someone to look.
pub(super) struct Row {
    pub(super) cells: Vec<String>,
    pub(super) problem: bool,
}

/// Space between columns.
const GAP: usize = 2;

/// Writes the table after an empty line. Problem rows begin with `!` as well as being red: not everyone sees colours.
pub(super) fn write(out: &mut String, columns: &[Column], rows: &[Row], width: usize, colour: bool) {
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().map(|row| row.cells[at].chars().count());
            cells.max().unwrap_or(0).max(column.title.chars().count())
        })
        .collect();
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let needs = |shown: &[usize]| 2 + shown.iter().map(|at| widths[*at] + GAP).sum::<usize>() - GAP;
    while needs(&shown) > width {
        let Some(next) = shown.iter().rposition(|at| {
            let most = shown.iter().map(|at| columns[*at].dispensable).max();
            columns[*at].dispensable > 0 && Some(columns[*at].dispensable) == most
        }) else {
            break;
        };
        shown.remove(next);
    }
    let mut line = |mark: &str, cells: &mut dyn FnMut(usize) -> String, paint: &str| {
        let mut text = mark.to_owned();
        for at in &shown {
            let cell = cells(*at);
            let pad = " ".repeat(widths[*at] - cell.chars().count());
            let gap = if text.len() > mark.len() { " ".repeat(GAP) } else { String::new() };
            let cell = if columns[*at].right { format!("{gap}{pad}{cell}") } else { format!("{gap}{cell}{pad}") };
            text.push_str(&cell);
        }
        let text = text.trim_end();
        // Writing to a String does not fail.
        let _ = if paint.is_empty() { writeln!(out, "{text}") } else { writeln!(out, "{paint}{text}\x1b[0m") };
    };
    line("  ", &mut |at| columns[at].title.to_owned(), if colour { "\x1b[1m" } else { "" });
    for row in rows {
        let (mark, paint) = if row.problem { ("! ", if colour { "\x1b[31m" } else { "" }) } else { ("  ", "") };
        line(mark, &mut |at| row.cells[at].clone(), paint);
    }
}
