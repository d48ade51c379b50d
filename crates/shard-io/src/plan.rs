//! Pack plans: packs as a parquet table whose images stay where they are, in the shards.

use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{
    Int64Builder, ListBuilder, StringBuilder, StructBuilder, UInt32Builder, UInt64Builder,
};
use arrow_array::{
    Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray, UInt32Array, UInt64Array,
};
use arrow_schema::{DataType, Field, Fields, Schema};

use crate::parquet_table::{TableFile, TableWriter, downcast, no_nulls, required_column, table_error};
use crate::{ImageRef, Pack, PackInfo, ShardError};

/// Packs encoded or decoded at once; 256 sequences of 4096 ids are 8 MiB.
const BATCH_PACKS: usize = 256;

/// Writes a plan: one row per pack, [`PackInfo`] in the file metadata. Same packs, same bytes.
///
/// # Errors
/// [`ShardError::Table`] if a pack has not as many keys as lengths or more images than ids,
/// [`ShardError::Io`] or [`ShardError::Parquet`] if writing fails.
pub fn write_plan(path: &Path, info: &PackInfo, packs: &[Pack]) -> Result<(), ShardError> {
    for (index, pack) in packs.iter().enumerate() {
        if let Some(problem) = pack.problem() {
            return Err(table_error(path, "keys", format!("pack {index} has {problem}")));
        }
    }
    let metadata = [
        ("seq_len", info.seq_len.to_string()),
        ("num_image_tokens", info.num_image_tokens.to_string()),
        ("tokenizer_digest", info.tokenizer_digest.clone()),
        ("images_dir", info.images_dir.clone()),
    ];
    let schema = Arc::new(Schema::new(vec![
        Field::new("input_ids", list_of(DataType::Int64), false),
        Field::new("lengths", list_of(DataType::UInt32), false),
        Field::new("keys", list_of(DataType::Utf8), false),
        Field::new("images", list_of(DataType::Struct(image_fields())), false),
    ]));
    let mut writer = TableWriter::create(path, schema.clone(), &metadata)?;
    for chunk in packs.chunks(BATCH_PACKS) {
        writer.write(&encode(chunk, schema.clone()))?;
    }
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

fn image_fields() -> Fields {
    Fields::from(vec![
        Field::new("shard", DataType::Utf8, false),
        Field::new("key", DataType::Utf8, false),
        Field::new("offset", DataType::UInt64, false),
        Field::new("num_bytes", DataType::UInt64, false),
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
    let image = |row| ImageRef {
        shard: shards.value(row).to_owned(),
        key: keys.value(row).to_owned(),
        offset: offsets.value(row),
        num_bytes: sizes.value(row),
    };
    Ok((0..array.len()).map(image).collect())
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
