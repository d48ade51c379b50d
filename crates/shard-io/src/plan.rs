//! Pack plans: packs as a parquet table whose images stay where they are, in the shards.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{
    Int64Builder, ListBuilder, StringBuilder, StructBuilder, UInt32Builder, UInt64Builder,
};
use arrow_array::{
    Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray, UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field, Fields, Schema};

use crate::parquet_table::{TableFile, TableWriter, downcast, no_nulls, required_column, table_error};
use crate::{ImageEncoding, ImageRef, ImageShrink, Pack, PackInfo, ShardError};

/// Packs encoded or decoded at once; 256 sequences of 4096 ids are 8 MiB.
const BATCH_PACKS: usize = 256;

/// Packs of a row group: the writer holds one in memory, encoded.
const ROW_GROUP_PACKS: usize = 32 * BATCH_PACKS;

/// The metadata key of [`PackInfo::image_shrink`]; plans of older versions lack it.
const IMAGE_SHRINK: &str = "image_shrink";

/// A plan under construction, for packs that come one at a time: one row per pack, [`PackInfo`] in the file metadata.
/// Same packs, same bytes. It appears when [`finish`](PlanWriter::finish) succeeds.
pub struct PlanWriter {
    table: TableWriter,
    schema: Arc<Schema>,
    path: PathBuf,
    /// Packs not yet encoded, [`BATCH_PACKS`] at most.
    waiting: Vec<Pack>,
    num_packs: usize,
}

impl PlanWriter {
    /// Starts the plan at `path`.
    ///
    /// # Errors
    /// [`ShardError::Io`] or [`ShardError::Parquet`] if it cannot be created.
    pub fn create(path: &Path, info: &PackInfo) -> Result<PlanWriter, ShardError> {
        let metadata = [
            ("seq_len", info.seq_len.to_string()),
            ("num_image_tokens", info.num_image_tokens.to_string()),
            ("tokenizer_digest", info.tokenizer_digest.clone()),
            ("images_dir", info.images_dir.clone()),
            (IMAGE_SHRINK, info.image_shrink.as_str().to_owned()),
        ];
        let schema = Arc::new(Schema::new(vec![
            Field::new("input_ids", list_of(DataType::Int64), false),
            Field::new("lengths", list_of(DataType::UInt32), false),
            Field::new("keys", list_of(DataType::Utf8), false),
            Field::new("images", list_of(DataType::Struct(image_fields())), false),
        ]));
        let table = TableWriter::create(path, schema.clone(), &metadata)?;
        Ok(PlanWriter { table, schema, path: path.to_path_buf(), waiting: Vec::new(), num_packs: 0 })
    }

    /// Appends a pack.
    ///
    /// # Errors
    /// [`ShardError::Table`] if it has not as many keys as lengths or more images than ids, [`ShardError::Io`] or
    /// [`ShardError::Parquet`] if writing fails.
    pub fn push(&mut self, pack: Pack) -> Result<(), ShardError> {
        if let Some(problem) = pack.problem() {
            let problem = format!("pack {} has {problem}", self.num_packs);
            return Err(table_error(&self.path, "keys", problem));
        }
        self.waiting.push(pack);
        self.num_packs += 1;
        if self.waiting.len() == BATCH_PACKS {
            self.write_batch()?;
        }
        if self.num_packs.is_multiple_of(ROW_GROUP_PACKS) {
            self.table.end_row_group()?;
        }
        Ok(())
    }

    /// Writes what is waiting and gives the file its name.
    ///
    /// # Errors
    /// As [`push`](PlanWriter::push).
    pub fn finish(mut self) -> Result<(), ShardError> {
        self.write_batch()?;
        self.table.finish()
    }

    fn write_batch(&mut self) -> Result<(), ShardError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.table.write(&encode(&self.waiting, self.schema.clone()))?;
        self.waiting.clear();
        Ok(())
    }
}

impl fmt::Debug for PlanWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlanWriter")
            .field("path", &self.path)
            .field("num_packs", &self.num_packs)
            .finish_non_exhaustive()
    }
}

/// Writes packs that are all at hand with a [`PlanWriter`].
///
/// # Errors
/// As [`PlanWriter`].
pub fn write_plan(path: &Path, info: &PackInfo, packs: &[Pack]) -> Result<(), ShardError> {
    let mut writer = PlanWriter::create(path, info)?;
    packs.iter().try_for_each(|pack| writer.push(pack.clone()))?;
    writer.finish()
}

/// Reads a plan written by [`write_plan`].
///
/// # Errors
/// [`ShardError::Table`] if columns, metadata or a pack's lengths are wrong, [`ShardError::Io`] or
/// [`ShardError::Parquet`] if the file cannot be read.
pub fn read_plan(path: &Path) -> Result<(PackInfo, Vec<Pack>), ShardError> {
    let file = TableFile::open(path)?;
    let number = |key: &str| -> Result<u32, ShardError> {
        let value = file.metadata(key)?;
        value.parse().map_err(|_| table_error(path, key, format!("`{value}` is no number")))
    };
    let info = PackInfo {
        seq_len: number("seq_len")?,
        num_image_tokens: number("num_image_tokens")?,
        tokenizer_digest: file.metadata("tokenizer_digest")?,
        images_dir: file.metadata("images_dir")?,
        image_shrink: match file.optional_metadata(IMAGE_SHRINK) {
            None => ImageShrink::None,
            Some(name) => ImageShrink::from_name(&name)
                .ok_or_else(|| table_error(path, IMAGE_SHRINK, format!("unknown rule `{name}`")))?,
        },
    };
    let mut packs = Vec::new();
    for batch in file.batches(BATCH_PACKS)? {
        decode(&batch?, path, &mut packs)?;
    }
    Ok((info, packs))
}

fn list_of(item: DataType) -> DataType {
    DataType::List(item_field(item))
}

fn item_field(item: DataType) -> Arc<Field> {
    Arc::new(Field::new("item", item, false))
}

/// The field of [`ImageRef::encoding`]; plans of older versions lack it.
const ENCODING: &str = "encoding";

fn image_fields() -> Fields {
    Fields::from(vec![
        Field::new("shard", DataType::Utf8, false),
        Field::new("key", DataType::Utf8, false),
        Field::new("offset", DataType::UInt64, false),
        Field::new("num_bytes", DataType::UInt64, false),
        Field::new(ENCODING, DataType::Utf8, false),
    ])
}

fn encode(packs: &[Pack], schema: Arc<Schema>) -> RecordBatch {
    let mut input_ids = ListBuilder::new(Int64Builder::new()).with_field(item_field(DataType::Int64));
    let mut lengths = ListBuilder::new(UInt32Builder::new()).with_field(item_field(DataType::UInt32));
    let mut keys = ListBuilder::new(StringBuilder::new()).with_field(item_field(DataType::Utf8));
    let image_builder = StructBuilder::from_fields(image_fields(), packs.len());
    let mut images = ListBuilder::new(image_builder).with_field(item_field(DataType::Struct(image_fields())));
    for pack in packs {
        input_ids.values().append_slice(&pack.input_ids);
        input_ids.append(true);
        lengths.values().append_slice(&pack.lengths);
        lengths.append(true);
        for key in &pack.keys {
            keys.values().append_value(key);
        }
        keys.append(true);
        for image in &pack.images {
            append_image(images.values(), image);
        }
        images.append(true);
    }
    let columns: Vec<Arc<dyn Array>> = vec![
        Arc::new(input_ids.finish()),
        Arc::new(lengths.finish()),
        Arc::new(keys.finish()),
        Arc::new(images.finish()),
    ];
    RecordBatch::try_new(schema, columns)
        .expect("every builder appended once per pack, with its field's type")
}

fn append_image(builder: &mut StructBuilder, image: &ImageRef) {
    const TYPED: &str = "the builder was made from `image_fields`";
    builder.field_builder::<StringBuilder>(0).expect(TYPED).append_value(&image.shard);
    builder.field_builder::<StringBuilder>(1).expect(TYPED).append_value(&image.key);
    builder.field_builder::<UInt64Builder>(2).expect(TYPED).append_value(image.offset);
    builder.field_builder::<UInt64Builder>(3).expect(TYPED).append_value(image.num_bytes);
    builder.field_builder::<StringBuilder>(4).expect(TYPED).append_value(image.encoding.as_str());
    builder.append(true);
}

fn decode(batch: &RecordBatch, path: &Path, packs: &mut Vec<Pack>) -> Result<(), ShardError> {
    let input_ids: &ListArray = required_column(batch, path, "input_ids")?;
    let lengths: &ListArray = required_column(batch, path, "lengths")?;
    let keys: &ListArray = required_column(batch, path, "keys")?;
    let images: &ListArray = required_column(batch, path, "images")?;
    for row in 0..batch.num_rows() {
        let pack = Pack {
            input_ids: items::<Int64Array>(&input_ids.value(row), path, "input_ids")?.values().to_vec(),
            lengths: items::<UInt32Array>(&lengths.value(row), path, "lengths")?.values().to_vec(),
            keys: strings(items(&keys.value(row), path, "keys")?),
            images: decode_images(items(&images.value(row), path, "images")?, path)?,
        };
        if let Some(problem) = pack.problem() {
            return Err(table_error(path, "keys", format!("pack {} has {problem}", packs.len())));
        }
        packs.push(pack);
    }
    Ok(())
}

/// The items of one list, which belongs to the column `name`, as an array of type `A` without nulls.
fn items<'a, A: Array + 'static>(
    list: &'a Arc<dyn Array>,
    path: &Path,
    name: &str,
) -> Result<&'a A, ShardError> {
    no_nulls(list.as_ref(), path, name)?;
    downcast(list.as_ref(), path, name)
}

fn strings(array: &StringArray) -> Vec<String> {
    (0..array.len()).map(|row| array.value(row).to_owned()).collect()
}

fn decode_images(array: &StructArray, path: &Path) -> Result<Vec<ImageRef>, ShardError> {
    let field = |name: &str| {
        let column = array
            .column_by_name(name)
            .ok_or_else(|| table_error(path, "images", format!("the struct has no field `{name}`")))?;
        no_nulls(column.as_ref(), path, "images")?;
        Ok(column)
    };
    let (shards, keys) = (field("shard")?, field("key")?);
    let (offsets, sizes) = (field("offset")?, field("num_bytes")?);
    let shards: &StringArray = downcast(shards.as_ref(), path, "images")?;
    let keys: &StringArray = downcast(keys.as_ref(), path, "images")?;
    let offsets: &UInt64Array = downcast(offsets.as_ref(), path, "images")?;
    let sizes: &UInt64Array = downcast(sizes.as_ref(), path, "images")?;
    let encodings: Option<&StringArray> = match array.column_by_name(ENCODING) {
        None => None,
        Some(_) => Some(downcast(field(ENCODING)?.as_ref(), path, "images")?),
    };
    let encoding = |row| match encodings.map(|names| names.value(row)) {
        None => Ok(ImageEncoding::Raw),
        Some(name) => ImageEncoding::from_name(name)
            .ok_or_else(|| table_error(path, "images", format!("unknown encoding `{name}`"))),
    };
    let image = |row| {
        Ok(ImageRef {
            shard: shards.value(row).to_owned(),
            key: keys.value(row).to_owned(),
            offset: offsets.value(row),
            num_bytes: sizes.value(row),
            encoding: encoding(row)?,
        })
    };
    (0..array.len()).map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::tests::{info, pack};

    #[test]
    fn write_then_read_is_identity_and_bytes_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.plan.parquet");
        for num_packs in [0, 1, 3, BATCH_PACKS + 1] {
            let packs: Vec<Pack> = (0..num_packs).map(|index| pack(index % 4)).collect();
            write_plan(&path, &info(), &packs).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(read_plan(&path).unwrap(), (info(), packs.clone()));
            write_plan(&path, &info(), &packs).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn row_groups_end_and_old_plans_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.plan.parquet");
        let info = PackInfo { image_shrink: ImageShrink::Reference, ..info() };
        let mut writer = PlanWriter::create(&path, &info).unwrap();
        for index in 0..=ROW_GROUP_PACKS {
            writer.push(pack(index % 2)).unwrap();
        }
        writer.finish().unwrap();
        let (read, packs) = read_plan(&path).unwrap();
        assert_eq!(
            (read, packs.len(), &packs[ROW_GROUP_PACKS]),
            (info.clone(), ROW_GROUP_PACKS + 1, &pack(0))
        );

        // Without the newer field and the newer metadata.
        let packs = [pack(1)];
        let batch = encode(
            &packs,
            Arc::new(Schema::new(vec![
                Field::new("input_ids", list_of(DataType::Int64), false),
                Field::new("lengths", list_of(DataType::UInt32), false),
                Field::new("keys", list_of(DataType::Utf8), false),
                Field::new("images", list_of(DataType::Struct(image_fields())), false),
            ])),
        );
        let images: &ListArray = required_column(&batch, &path, "images").unwrap();
        let (_, offsets, items, _) = images.clone().into_parts();
        let (fields, columns, _) = items.as_any().downcast_ref::<StructArray>().unwrap().clone().into_parts();
        let fields: Fields = fields.iter().take(4).cloned().collect();
        let items = StructArray::new(fields.clone(), columns[..4].to_vec(), None);
        let images =
            ListArray::new(item_field(DataType::Struct(fields.clone())), offsets, Arc::new(items), None);
        let mut columns = batch.columns().to_vec();
        columns[3] = Arc::new(images);
        let schema = Arc::new(Schema::new(vec![
            Field::new("input_ids", list_of(DataType::Int64), false),
            Field::new("lengths", list_of(DataType::UInt32), false),
            Field::new("keys", list_of(DataType::Utf8), false),
            Field::new("images", list_of(DataType::Struct(fields)), false),
        ]));
        let metadata =
            [("seq_len", "1"), ("num_image_tokens", "1"), ("tokenizer_digest", ""), ("images_dir", "")]
                .map(|(key, value)| (key, value.to_owned()));
        let mut writer = TableWriter::create(&path, schema.clone(), &metadata).unwrap();
        writer.write(&RecordBatch::try_new(schema, columns).unwrap()).unwrap();
        writer.finish().unwrap();
        let (info, read) = read_plan(&path).unwrap();
        assert_eq!((info.image_shrink, read), (ImageShrink::None, packs.to_vec()));
    }

    #[test]
    fn broken_packs_and_strangers_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.plan.parquet");
        let broken = Pack { keys: vec![], ..pack(2) };
        let error = write_plan(&path, &info(), &[pack(1), broken]).unwrap_err().to_string();
        assert!(error.contains("pack 1 has 0 keys for 2 lengths") && !path.exists(), "{error}");
        crate::write_atomic(&path, b"PAR1 is not enough PAR1").unwrap();
        assert!(matches!(read_plan(&path), Err(ShardError::Parquet { .. })));
        let schema = Arc::new(Schema::new(vec![Field::new("input_ids", DataType::Int64, false)]));
        let metadata = ["seq_len", "num_image_tokens", "tokenizer_digest", "images_dir"]
            .map(|key| (key, "1".to_owned()));
        let mut writer = TableWriter::create(&path, schema.clone(), &metadata).unwrap();
        writer
            .write(&RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![1]))]).unwrap())
            .unwrap();
        writer.finish().unwrap();
        let error = read_plan(&path).unwrap_err().to_string();
        assert!(error.contains("`input_ids`: unexpected type Int64"), "{error}");
    }
}
