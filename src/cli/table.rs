//! Tables: with blanks for people, as Markdown, as CSV.

/// A table of texts.
pub struct Table {
    /// A name each column, and to which side it leans.
    pub columns: Vec<(&'static str, Side)>,
    /// As many texts each as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// To which side a column leans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

impl Table {
    /// With blanks between the columns. In the first column a text that stands above already is left out.
    pub fn text(&self) -> String {
        let mut shown = self.rows.clone();
        for nth in (1..shown.len()).rev() {
            if self.rows[nth].first() == self.rows[nth - 1].first()
                && let Some(first) = shown[nth].first_mut()
            {
                first.clear();
            }
        }
        self.lines(&shown, "", "  ", "", None)
    }

    /// As Markdown, its columns under each other.
    pub fn markdown(&self) -> String {
        let rule = |side: Side, width: usize| match side {
            Side::Left => "-".repeat(width),
            Side::Right => format!("{}:", "-".repeat(width.saturating_sub(1))),
        };
        self.lines(&self.rows, "| ", " | ", " |", Some(&rule))
    }

    /// With commas. No text here has one, nor quotes or line breaks.
    pub fn csv(&self) -> String {
        let names = self.columns.iter().map(|(name, _)| name.replace(' ', "_")).collect::<Vec<_>>();
        let lines = std::iter::once(&names).chain(&self.rows);
        lines.map(|row| row.join(",") + "\n").collect()
    }

    fn lines(
        &self,
        rows: &[Vec<String>],
        left: &str,
        between: &str,
        right: &str,
        rule: Option<&dyn Fn(Side, usize) -> String>,
    ) -> String {
        let names: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let n_chars = |text: &String| text.chars().count();
        let width = |column: usize| {
            let texts = rows.iter().chain([&names]).filter_map(|row| row.get(column));
            texts.map(n_chars).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..names.len()).map(width).collect();
        let line = |row: &[String]| {
            let cells = row.iter().zip(&self.columns).zip(&widths).map(|((text, (_, side)), width)| match side {
                Side::Left => format!("{text:<width$}"),
                Side::Right => format!("{text:>width$}"),
            });
            let line = format!("{left}{}{right}", cells.collect::<Vec<_>>().join(between));
            line.trim_end().to_owned() + "\n"
        };
        let rule = rule.map(|rule| {
            let cells: Vec<String> = self.columns.iter().zip(&widths).map(|((_, side), w)| rule(*side, *w)).collect();
            line(&cells)
        });
        let head = line(&names) + &rule.unwrap_or_default();
        head + &rows.iter().map(|row| line(row)).collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let rows = [["a", "b c", "1"], ["a", "d", "22"], ["e", "é", "3"]];
        let table = Table {
            columns: vec![("case", Side::Left), ("what", Side::Left), ("n", Side::Right)],
            rows: rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect(),
        };
        assert_eq!(table.text(), "case  what   n\na     b c    1\n      d     22\ne     é      3\n");
        let markdown = "| case | what |  n |\n| ---- | ---- | -: |\n| a    | b c  |  1 |\n| a    | d    | 22 |\n| e    | é    |  3 |\n";
        assert_eq!(table.markdown(), markdown);
        assert_eq!(table.csv(), "case,what,n\na,b c,1\na,d,22\ne,é,3\n");
    }
}
