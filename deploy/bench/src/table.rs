//! The result table: each figure with its ceiling, the value that is compared, and the bar.

/// The limit of a ratio or a figure.
#[derive(Clone, Copy)]
pub enum Bar {
    /// The value must not be lower.
    AtLeast(f64),
    /// The value must not be higher.
    AtMost(f64),
    /// No limit.
    None,
}

impl Bar {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
            Self::None => true,
        }
    }
}

struct Row {
    what: String,
    figure: String,
    ceiling: String,
    value: f64,
    bar: Bar,
}

/// Collects rows and prints them at the end.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a row with the median ratio of pairs (figure, ceiling).
    pub fn pairs(&mut self, what: &str, unit: &str, pairs: &[(f64, f64)], bar: Bar) {
        let figure = median(pairs.iter().map(|pair| pair.0));
        let ceiling = median(pairs.iter().map(|pair| pair.1));
        let ratio = median(pairs.iter().map(|pair| pair.0 / pair.1));
        self.rows.push(Row {
            what: what.into(),
            figure: format!("{figure:.0} {unit}"),
            ceiling: format!("{ceiling:.0} {unit}"),
            value: ratio,
            bar,
        });
    }

    /// Adds a row with a figure that is compared with a fixed bar.
    pub fn figure(&mut self, what: &str, unit: &str, value: f64, bar: Bar) {
        self.rows.push(Row {
            what: what.into(),
            figure: format!("{value:.1} {unit}"),
            ceiling: String::new(),
            value,
            bar,
        });
    }

    /// Whether every bar was met.
    pub fn all_met(&self) -> bool {
        self.rows.iter().all(|row| row.bar.met(row.value))
    }

    /// Prints the table to standard output.
    pub fn print(&self) {
        println!("{:<56} {:>18} {:>18} {:>7} {:>8}  ", "", "formid", "ceiling", "value", "bar");
        for row in &self.rows {
            let bar = match row.bar {
                Bar::AtLeast(bar) => format!(">= {bar}"),
                Bar::AtMost(bar) => format!("<= {bar}"),
                Bar::None => String::new(),
            };
            let verdict = if row.bar.met(row.value) { "ok" } else { "MISSED" };
            println!(
                "{:<56} {:>18} {:>18} {:>7.2} {:>8}  {verdict}",
                row.what, row.figure, row.ceiling, row.value, bar
            );
        }
    }
}

/// The median.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
