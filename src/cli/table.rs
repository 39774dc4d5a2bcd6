//! Tables for people: aligned columns without lines, the same at a terminal and in a pipe.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::output::sanitize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// A column: its title, and the cell that it has for a row.
pub type Column<T> = (&'static str, Align, fn(&T) -> String);

/// One row an item.
pub fn table_of<T>(columns: &[Column<T>], items: &[T]) -> String {
    let titles: Vec<(&str, Align)> = columns.iter().map(|(title, align, _)| (*title, *align)).collect();
    let cells = |item| columns.iter().map(|(_, _, cell)| cell(item)).collect();
    table(&titles, &items.iter().map(cells).collect::<Vec<_>>())
}

/// Formats rows under their headers. Cells are sanitized, so that text from others stays in its cell.
pub fn table(columns: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(name, _)| name.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| sanitize(cell)));
    }
    for (column, (_, align)) in table.column_iter_mut().zip(columns) {
        column.set_padding((0, 2));
        column.set_cell_alignment(match align {
            Align::Left => CellAlignment::Left,
            Align::Right => CellAlignment::Right,
        });
    }
    // Trailing spaces are removed, for whoever compares or cuts lines.
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_stay_in_their_rows() {
        let rows = [vec!["lamp".to_owned(), "9.50".to_owned()], vec!["a\nb\x1b[2J".to_owned(), "10.00".to_owned()]];
        let text = table(&[("name", Align::Left), ("price", Align::Right)], &rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "NAME     PRICE");
        assert_eq!(lines[1], "lamp      9.50");
        assert!(!text.contains('\x1b'));
    }
}
