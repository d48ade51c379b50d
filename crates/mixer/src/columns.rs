//! The columns of a pool: one schema over files that need not agree, and the names SQL knows.

use std::sync::{Arc, OnceLock};

use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray, cast::AsArray, new_null_array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::compute::cast;

use crate::config::ScoreFiles;
use crate::sample_table::FIXED_COLUMNS;

/// The type in which values of both types can be held. What has nothing in common is held as text.
fn common_type(a: &DataType, b: &DataType) -> DataType {
    match (a, b) {
        _ if a == b => a.clone(),
        (DataType::Null, other) | (other, DataType::Null) => other.clone(),
        _ if a.is_integer() && b.is_integer() => DataType::Int64,
        _ if a.is_numeric() && b.is_numeric() => DataType::Float64,
        _ => DataType::Utf8,
    }
}

/// The columns of several files together, in the order in which they are met. A column without any value is text.
#[derive(Debug, Clone, Default)]
pub(crate) struct MergedColumns {
    columns: Vec<MergedColumn>,
    num_files: usize,
    has_rows: bool,
    /// Made when it is asked for, of the columns there are then.
    schema: OnceLock<SchemaRef>,
}

/// One of them.
#[derive(Debug, Clone)]
struct MergedColumn {
    name: String,
    /// The common type of all files.
    kind: DataType,
    /// The types in which files that have rows hold it, with the first such file.
    held: Vec<(DataType, usize)>,
}

impl MergedColumns {
    /// The columns every pool of shards has, even one without samples.
    pub(crate) fn of_shards() -> MergedColumns {
        let kind = |name: &str| match name {
            "shard_index" => DataType::Int32,
            "position" => DataType::Int64,
            _ => DataType::Utf8,
        };
        let columns = FIXED_COLUMNS.map(|name| MergedColumn {
            name: name.to_owned(),
            kind: kind(name),
            held: Vec::new(),
        });
        MergedColumns { columns: columns.to_vec(), ..MergedColumns::default() }
    }

    /// Adds the columns of another file.
    pub(crate) fn add(&mut self, schema: &Schema, num_rows: u64) {
        let _outdated = self.schema.take();
        for field in schema.fields() {
            let kind = field.data_type();
            let place = self.columns.iter().position(|column| column.name == *field.name());
            let place = place.unwrap_or_else(|| {
                let column =
                    MergedColumn { name: field.name().clone(), kind: kind.clone(), held: Vec::new() };
                self.columns.push(column);
                self.columns.len() - 1
            });
            let column = &mut self.columns[place];
            column.kind = common_type(&column.kind, kind);
            if num_rows > 0 && !column.held.iter().any(|(known, _)| known == kind) {
                column.held.push((kind.clone(), self.num_files));
            }
        }
        self.num_files += 1;
        self.has_rows |= num_rows > 0;
    }

    /// Whether any of the files has rows.
    pub(crate) fn has_rows(&self) -> bool {
        self.has_rows
    }

    /// A type that `fits` refuses and in which some file has values of the column `name`, and which file, as they were added.
    pub(crate) fn held_otherwise(
        &self,
        name: &str,
        fits: impl Fn(&DataType) -> bool,
    ) -> Option<(&DataType, usize)> {
        let column = self.columns.iter().find(|column| column.name == name)?;
        column.held.iter().find(|(kind, _)| !fits(kind)).map(|(kind, file)| (kind, *file))
    }

    /// The type of the column `name`; `Null` if no file has a value of it.
    pub(crate) fn kind(&self, name: &str) -> Option<&DataType> {
        self.columns.iter().find(|column| column.name == name).map(|column| &column.kind)
    }

    /// The schema: every column nullable.
    pub(crate) fn schema(&self) -> &SchemaRef {
        let field = |column: &MergedColumn| {
            let kind = match &column.kind {
                DataType::Null => DataType::Utf8,
                other => other.clone(),
            };
            Field::new(&column.name, kind, true)
        };
        self.schema.get_or_init(|| Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>())))
    }
}

/// `batch` with the columns of `schema`: cast where the types differ, null where it has none or cannot be cast.
pub(crate) fn conform(batch: &RecordBatch, schema: &Arc<Schema>) -> RecordBatch {
    let column = |field: &Arc<Field>| -> ArrayRef {
        let found =
            batch.column_by_name(field.name()).and_then(|column| cast(column, field.data_type()).ok());
        found.unwrap_or_else(|| new_null_array(field.data_type(), batch.num_rows()))
    };
    let columns = schema.fields().iter().map(column).collect();
    RecordBatch::try_new(schema.clone(), columns).expect("the columns were made for the schema")
}

/// What SQL and the output tables call the columns of `schema`, in its order: their own names, and for scores the
/// metric, or `{scorer}_{metric}` where that is taken.
pub(crate) fn public_names(schema: &Schema, sidecars: &[ScoreFiles]) -> Vec<String> {
    let split = |name: &str| {
        let (index, metric) = name.strip_prefix("score:")?.split_once(':')?;
        Some((index.parse::<usize>().ok()?, metric.to_owned()))
    };
    let metrics: Vec<Option<(usize, String)>> =
        schema.fields().iter().map(|field| split(field.name())).collect();
    let is_plain = |metric: &str| {
        let own_names = schema.fields().iter().zip(&metrics).filter(|(_, score)| score.is_none());
        let num_scores = metrics.iter().flatten().filter(|(_, other)| other == metric).count();
        num_scores == 1 && !own_names.into_iter().any(|(field, _)| field.name() == metric)
    };
    let mut names: Vec<String> = Vec::new();
    for (field, score) in schema.fields().iter().zip(&metrics) {
        let mut name = match score {
            None => field.name().clone(),
            Some((_, metric)) if is_plain(metric) => metric.clone(),
            Some((index, metric)) => {
                let scorer = sidecars.get(*index).map_or("scorer", |sidecar| &sidecar.scorer);
                format!("{scorer}_{metric}")
            }
        };
        while names.contains(&name) {
            name.push('_');
        }
        names.push(name);
    }
    names
}

/// Names for a message: `a`, `b`.
pub(crate) fn list_names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Whether [`texts`] reads columns of this type.
pub(crate) fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => true,
        DataType::Dictionary(_, values) => matches!(**values, DataType::Utf8 | DataType::LargeUtf8),
        _ => false,
    }
}

/// Whether [`numbers`] reads columns of this type.
pub(crate) fn is_number(kind: &DataType) -> bool {
    kind.is_numeric() || *kind == DataType::Null
}

/// A column as text, whatever the layout in which it holds it; `None` if it holds none.
pub(crate) fn texts(column: &ArrayRef) -> Option<StringArray> {
    is_text(column.data_type())
        .then(|| cast(column, &DataType::Utf8).ok())
        .flatten()
        .map(|it| it.as_string::<i32>().clone())
}

/// A column as numbers; `None` if it holds none.
pub(crate) fn numbers(column: &ArrayRef) -> Option<Float64Array> {
    is_number(column.data_type())
        .then(|| cast(column, &DataType::Float64).ok())
        .flatten()
        .map(|it| it.as_primitive().clone())
}

/// `threshold` as scores of this type are compared with it: those of single precision as such, as NumPy and pandas do.
pub(crate) fn rounded_as(scores: &DataType, threshold: f64) -> f64 {
    match scores {
        DataType::Float32 => f64::from(threshold as f32),
        _ => threshold,
    }
}

#[cfg(test)]
mod tests {
    use arrow_array::{Int32Array, Int64Array};

    use super::*;

    fn schema(columns: &[(&str, DataType)]) -> Schema {
        Schema::new(columns.iter().map(|(name, it)| Field::new(*name, it.clone(), true)).collect::<Vec<_>>())
    }

    #[test]
    fn files_that_disagree_are_held_in_common_types() {
        let mut merged = MergedColumns::default();
        let first = schema(&[("w", DataType::Int32), ("s", DataType::Float64), ("e", DataType::Null)]);
        merged.add(&first, 2);
        assert_eq!(merged.schema().field(2).data_type(), &DataType::Utf8);
        let second = schema(&[("s", DataType::Int64), ("w", DataType::Int64), ("new", DataType::Boolean)]);
        merged.add(&second, 2);
        merged.add(&schema(&[("new", DataType::Int64), ("none", DataType::Null)]), 2);
        let expected = [
            ("w", DataType::Int64),
            ("s", DataType::Float64),
            ("e", DataType::Utf8),
            ("new", DataType::Utf8),
            ("none", DataType::Utf8),
        ];
        assert_eq!(**merged.schema(), schema(&expected));
        let batch = crate::sample_table::batch_of(vec![
            ("w".into(), Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef),
            ("new".into(), Arc::new(Int64Array::from(vec![5, 6]))),
        ]);
        let conformed = conform(&batch, merged.schema());
        assert_eq!(conformed.column(0).as_ref(), &Int64Array::from(vec![1, 2]));
        assert_eq!(conformed.column(1).null_count(), 2);
        assert_eq!(conformed.column(3).as_ref(), &StringArray::from(vec!["5", "6"]));
    }

    #[test]
    fn files_without_rows_hold_nothing() {
        let mut merged = MergedColumns::default();
        merged.add(&schema(&[("score", DataType::Utf8)]), 0);
        assert!(!merged.has_rows());
        assert_eq!(merged.held_otherwise("score", is_number), None);
        merged.add(&schema(&[("score", DataType::Int64)]), 3);
        merged.add(&schema(&[("score", DataType::Boolean)]), 1);
        assert!(merged.has_rows());
        assert_eq!(merged.held_otherwise("score", is_number), Some((&DataType::Boolean, 2)));
        assert_eq!(merged.held_otherwise("score", |_| true), None);
        assert_eq!(merged.held_otherwise("other", is_number), None);
    }

    #[test]
    fn scores_have_plain_names_where_these_are_free() {
        let sidecars = ["clip", "mlm"].map(|scorer| ScoreFiles { scores: "d".into(), scorer: scorer.into() });
        let physical =
            ["key", "width", "score:0:clip_score", "score:0:text", "score:1:text", "score:1:width"];
        let schema = schema(&physical.map(|name| (name, DataType::Utf8)));
        let expected = ["key", "width", "clip_score", "clip_text", "mlm_text", "mlm_width"];
        assert_eq!(public_names(&schema, &sidecars), expected);
    }

    #[test]
    fn thresholds_are_as_exact_as_the_scores() {
        assert_eq!(rounded_as(&DataType::Float32, 0.1), f64::from(0.1_f32));
        assert_eq!(rounded_as(&DataType::Float64, 0.1), 0.1);
    }

    #[test]
    fn texts_and_numbers_are_recognised() {
        let words: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
        let views = cast(&words, &DataType::Utf8View).unwrap();
        assert_eq!(texts(&views).unwrap().value(0), "a");
        assert!(numbers(&words).is_none());
        let ints: ArrayRef = Arc::new(Int32Array::from(vec![3]));
        assert!(texts(&ints).is_none());
        assert_eq!(numbers(&ints).unwrap().value(0), 3.0);
    }
}
