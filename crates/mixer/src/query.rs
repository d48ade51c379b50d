//! SQL over the pool and the tables beside it, by DataFusion, within a bounded memory.
//!
//! A `where` condition becomes `SELECT … FROM pool LEFT JOIN t ON pool.uid = t.uid … WHERE (condition)` with those tables joined
//! that it speaks of. Rows come in no particular order and are collected as sets, so that a result depends neither on
//! threads nor on what was spilled; what would make it depend on chance (`random()`, `LIMIT` or `first_value` without
//! order) is refused. Where it depends on the order in which rows are met (sums of fractions are rounded, ties of an
//! order are settled), one partition meets them in the order of the files.
//!
//! Joins are hash joins at first, which do not spill; where memory does not suffice the query runs again with
//! sort-merge joins, which do, and at last with as little parallelism as these need.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use datafusion::common::{Column, DataFusionError};
use datafusion::datasource::TableProvider;
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext};
use futures_util::StreamExt;
use oqvl_shard_io::without_parquet_panic;
use oqvl_stage::{ConfigError, RunContext, Stage};

use crate::columns::{list_names, public_names, texts};
use crate::config::{JoinKey, ScoreFiles};
use crate::parquet_scan::{ParquetFiles, metadata_files};
use crate::row_order::{RowOrder, order_needed};
use crate::scratch::{Scratch, SpillDir};
use crate::sql_mistake::{Mistake, check_patterns, explain, one_sentence};
use crate::subset_config::Rule;
use crate::{Mixer, MixerConfig, MixerError};

/// The name of the pool in SQL.
pub(crate) const POOL: &str = "pool";

/// Most that a sort keeps back for its merge.
const MAX_MERGE_RESERVATION_BYTES: usize = 10 << 20;

/// Rows that operators hand on at once.
const BATCH_ROWS: usize = 8192;

/// The pool as SQL sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PoolTable<'a> {
    /// Only its columns, to check queries against, and whether there are no others.
    Preview { schema: &'a Schema, is_certain: bool },
    /// Its rows.
    Files(&'a ParquetFiles),
}

/// What a query gives for each sample it selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Selected {
    /// Its shard and its position there.
    Place,
    /// Its uid.
    Uid,
    /// Its key.
    Key,
}

/// A query that can be run.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    /// The key it comes from in the table of the stage.
    key: String,
    sql: String,
    pub(crate) selected: Selected,
    order: RowOrder,
}

impl Query {
    /// The key of the config it comes from, from the root.
    fn full_key(&self) -> String {
        format!("{}.{}", Mixer::NAME, self.key)
    }
}

/// Why a query cannot be planned: a mistake in the config.
#[derive(Debug)]
pub(crate) struct Refusal {
    error: ConfigError,
    /// It names a column that is not there.
    lacks_column: bool,
}

impl From<ConfigError> for Refusal {
    fn from(error: ConfigError) -> Refusal {
        Refusal { error, lacks_column: false }
    }
}

impl From<Refusal> for MixerError {
    fn from(refusal: Refusal) -> MixerError {
        refusal.error.into()
    }
}

/// Says that a column was not met yet, by an error that would be one if there were no more samples.
pub(crate) fn warn_of_absence(error: &ConfigError) {
    let error = error.clone().inside(Mixer::NAME);
    tracing::warn!(%error, "the first samples do not have it; whether others do is seen when all have been read");
}

/// A way to run a query.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    prefer_hash_join: bool,
    threads: usize,
    batch_rows: usize,
}

/// The pool and the tables, ready to be queried.
#[derive(Debug)]
pub(crate) struct Database<'a> {
    config: &'a MixerConfig,
    pool: PoolTable<'a>,
    /// Whether the pool has shards, or only uids.
    has_places: bool,
    sidecars: Vec<ScoreFiles>,
    tables: Vec<ParquetFiles>,
    scratch: &'a Scratch,
    spill_dir: SpillDir,
    run: &'a RunContext,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Database<'a> {
    /// Opens the tables of the config beside `pool`.
    pub(crate) fn open(
        config: &'a MixerConfig,
        pool: PoolTable<'a>,
        has_places: bool,
        scratch: &'a Scratch,
        run: &'a RunContext,
    ) -> Result<Database<'a>, MixerError> {
        let mut tables = Vec::with_capacity(config.table.len());
        for (index, table) in config.table.iter().enumerate() {
            let files = ParquetFiles::open(table_files(&run.resolve(&table.path), index)?, run)?;
            let on = table.on.column();
            let field = files.schema().field_with_name(on).ok();
            let is_text = |field: &arrow_schema::Field| {
                use arrow_schema::DataType::{LargeUtf8, Utf8, Utf8View};
                matches!(field.data_type(), Utf8 | LargeUtf8 | Utf8View)
            };
            if !field.is_some_and(is_text) {
                let known = list_names(files.schema().fields().iter().map(|field| field.name().as_str()));
                let found =
                    field.map_or("no such column".to_owned(), |it| format!("it is {}", it.data_type()));
                let message = format!("`{}` has no text column `{on}` ({found}); it has {known}", table.name);
                return Err(ConfigError::new(format!("table.{index}.on"), message).into());
            }
            tables.push(files);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(run.threads.max(1))
            .enable_all()
            .build()
            .map_err(MixerError::Threads)?;
        let (sidecars, spill_dir) = (config.sidecars(), scratch.spill_dir()?);
        Ok(Database { config, pool, has_places, sidecars, tables, scratch, spill_dir, run, runtime })
    }

    /// Checks that the query of a rule, if it has one, can be planned. A column that the first samples lack is not
    /// missed before all have been read.
    pub(crate) fn check(&self, index: usize, rule: &Rule) -> Result<(), MixerError> {
        let planned = match rule {
            Rule::Where(condition) => self.plan_where(index, condition),
            Rule::Sql(sql) => self.plan_sql(index, sql),
            Rule::Score { .. } | Rule::Uids(_) | Rule::Baseline(_) => return Ok(()),
        };
        match (planned, self.pool) {
            (Err(Refusal { error, lacks_column: true }), PoolTable::Preview { is_certain: false, .. }) => {
                warn_of_absence(&error);
                Ok(())
            }
            (planned, _) => Ok(planned.map(drop)?),
        }
    }

    /// The query for the condition of the subset at `index`, planned.
    pub(crate) fn plan_where(&self, index: usize, condition: &str) -> Result<Query, Refusal> {
        let key = format!("subset.{index}.where");
        let mut from = POOL.to_owned();
        for (table, files) in self.config.table.iter().zip(&self.tables) {
            if self.speaks_of(condition, &table.name, table.on, files) {
                from += &left_join(&table.name, table.on, files);
            }
        }
        let (columns, selected) = if self.has_places {
            ("pool.shard_index, pool.position", Selected::Place)
        } else {
            ("pool.uid", Selected::Uid)
        };
        let sql = format!("SELECT {columns} FROM {from} WHERE ({condition}\n)");
        let query = Query { key, sql, selected, order: RowOrder::Any };
        let (_frame, order) = self.plan(&query)?;
        Ok(Query { order, ..query })
    }

    /// The query of the subset at `index`, planned; its result must be one column, `uid` or `key`.
    pub(crate) fn plan_sql(&self, index: usize, sql: &str) -> Result<Query, Refusal> {
        let key = format!("subset.{index}.sql");
        let query = Query { key, sql: sql.to_owned(), selected: Selected::Uid, order: RowOrder::Any };
        let (frame, order) = self.plan(&query)?;
        let columns: Vec<&str> = frame.schema().fields().iter().map(|field| field.name().as_str()).collect();
        use arrow_schema::DataType::{LargeUtf8, Utf8, Utf8View};
        let is_text =
            frame.schema().fields().iter().all(|it| matches!(it.data_type(), Utf8 | LargeUtf8 | Utf8View));
        let selected = match *columns {
            ["uid"] if is_text => Selected::Uid,
            ["key"] if is_text => Selected::Key,
            _ => {
                let columns = list_names(columns.iter().copied());
                let message = format!("must return one text column, `uid` or `key`, and returns {columns}");
                return Err(ConfigError::new(query.key, message).into());
            }
        };
        Ok(Query { selected, order, ..query })
    }

    /// Whether the condition names the table, or a column that only the table has.
    fn speaks_of(&self, condition: &str, table: &str, on: JoinKey, files: &ParquetFiles) -> bool {
        let pool = self.pool_columns();
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let mut words = condition.split(|c| !is_part(c)).filter(|word| !word.is_empty());
        words.any(|word| {
            let lower = word.to_lowercase();
            let is_column = |name: &str| name == word || name == lower;
            let of_pool = pool.iter().any(|name| is_column(name));
            let of_table = files.schema().fields().iter().any(|field| is_column(field.name()));
            let is_key = lower == format!("{table}_{}", on.column());
            lower == table || is_key || (of_table && !of_pool && lower != on.column())
        })
    }

    fn pool_columns(&self) -> Vec<String> {
        match self.pool {
            PoolTable::Preview { schema, .. } => public_names(schema, &self.sidecars),
            PoolTable::Files(files) => public_names(files.schema(), &self.sidecars),
        }
    }

    fn plan(&self, query: &Query) -> Result<(DataFrame, RowOrder), Refusal> {
        let attempt =
            Attempt { prefer_hash_join: true, threads: self.run.threads.max(2), batch_rows: BATCH_ROWS };
        let frame = self.frame(query, attempt).map_err(|error| self.refusal(query, &error))?;
        let order = order_needed(frame.logical_plan())
            .map_err(|problem| ConfigError::new(query.key.clone(), problem))?;
        check_patterns(frame.logical_plan())
            .map_err(|problem| ConfigError::new(query.key.clone(), problem))?;
        // Types are checked when the plan becomes physical.
        let physical = self.runtime.block_on(frame.clone().create_physical_plan());
        let _plan = physical.map_err(|error| self.refusal(query, &error))?;
        Ok((frame, order))
    }

    fn frame(&self, query: &Query, attempt: Attempt) -> Result<DataFrame, DataFusionError> {
        let context = self.session(attempt)?;
        let options =
            SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        self.runtime.block_on(context.sql_with_options(&query.sql, options))
    }

    fn session(&self, attempt: Attempt) -> Result<SessionContext, DataFusionError> {
        let memory = self.scratch.query_bytes();
        let reservation = (memory / (attempt.threads * 32)).min(MAX_MERGE_RESERVATION_BYTES);
        let config = SessionConfig::new()
            .with_target_partitions(attempt.threads)
            .with_batch_size(attempt.batch_rows)
            .with_sort_spill_reservation_bytes(reservation)
            .set_bool("datafusion.optimizer.prefer_hash_join", attempt.prefer_hash_join);
        let disk = DiskManagerMode::Directories(vec![self.spill_dir.path().to_path_buf()]);
        let disk = DiskManagerBuilder::default().with_mode(disk).with_max_temp_directory_size(u64::MAX);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
            .with_disk_manager_builder(disk)
            .build_arc()?;
        let context = SessionContext::new_with_config_rt(config, runtime);
        crate::text_functions::register(&context);
        let (schema, provider): (&Schema, Arc<dyn TableProvider>) = match self.pool {
            PoolTable::Preview { schema, .. } => {
                (schema, Arc::new(EmptyTable::new(Arc::new(schema.clone()))))
            }
            PoolTable::Files(files) => (files.schema(), listing(files)?),
        };
        let names = schema.fields().iter().zip(self.pool_columns());
        let columns =
            names.map(|(field, name)| Expr::Column(Column::new_unqualified(field.name())).alias(name));
        let view = context.read_table(provider)?.select(columns.collect::<Vec<_>>())?;
        context.register_table(POOL, view.into_view())?;
        for (table, files) in self.config.table.iter().zip(&self.tables) {
            context.register_table(table.name.as_str(), listing(files)?)?;
        }
        Ok(context)
    }

    /// Runs a query and hands its rows to `take`, in any order; returns how many bytes were spilled. The rows of an attempt
    /// that memory did not suffice for may have been handed over before: `take` collects a set.
    pub(crate) fn run(
        &self,
        query: &Query,
        mut take: impl FnMut(RecordBatch) -> Result<(), MixerError>,
    ) -> Result<usize, MixerError> {
        let threads = match query.order {
            RowOrder::Any => self.run.threads.max(2),
            RowOrder::Fixed => 1,
        };
        // A merge holds a batch of every run.
        let attempts = [
            (true, threads, BATCH_ROWS),
            (false, threads, BATCH_ROWS),
            (false, threads.min(2), BATCH_ROWS / 8),
        ];
        let mut outcome = Ok(0);
        for (prefer_hash_join, threads, batch_rows) in attempts {
            outcome = self.run_once(query, Attempt { prefer_hash_join, threads, batch_rows }, &mut take)?;
            match &outcome {
                Ok(spilled_bytes) => {
                    tracing::info!(query = query.full_key(), spilled_bytes, "the query is answered");
                    return Ok(*spilled_bytes);
                }
                Err(error) if is_exhausted(error) => {
                    tracing::info!(
                        query = query.full_key(),
                        "more than memory holds: trying again with less at once"
                    );
                }
                Err(_) => break,
            }
        }
        outcome.map_err(|error| self.failure(query, &error))
    }

    fn run_once(
        &self,
        query: &Query,
        attempt: Attempt,
        take: &mut impl FnMut(RecordBatch) -> Result<(), MixerError>,
    ) -> Result<Result<usize, DataFusionError>, MixerError> {
        let start = || {
            let frame = self.frame(query, attempt)?;
            let task = Arc::new(frame.task_ctx());
            let plan = self.runtime.block_on(frame.create_physical_plan())?;
            // Operators start tasks of the runtime as soon as they are executed.
            let _guard = self.runtime.enter();
            Ok((execute_stream(plan.clone(), task)?, plan))
        };
        let (mut stream, plan) = match start() {
            Ok(started) => started,
            Err(error) => return Ok(Err(error)),
        };
        loop {
            self.run.check_interrupt()?;
            match without_parquet_panic(|| Ok(self.runtime.block_on(stream.next()))) {
                Ok(Some(Ok(batch))) => take(batch)?,
                Ok(Some(Err(error))) => return Ok(Err(error)),
                Ok(None) => break,
                Err(panic) => return Ok(Err(panic.into())),
            }
        }
        Ok(Ok(spilled_bytes(plan.as_ref())))
    }

    /// A query that cannot be planned is a mistake in the config.
    fn refusal(&self, query: &Query, error: &DataFusionError) -> Refusal {
        let mut tables = vec![(POOL.to_owned(), self.pool_columns())];
        for (table, files) in self.config.table.iter().zip(&self.tables) {
            let columns = files.schema().fields().iter().map(|field| field.name().clone());
            tables.push((table.name.clone(), columns.collect()));
        }
        let Mistake { problem, lacks_column } = explain(error, &query.sql, &tables);
        Refusal { error: ConfigError::new(query.key.clone(), problem), lacks_column }
    }

    /// A planned query that fails: out of memory, out of disk, a damaged table, a value that cannot be cast.
    fn failure(&self, query: &Query, error: &DataFusionError) -> MixerError {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = source {
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            {
                let path = self.scratch.dir().to_path_buf();
                return MixerError::Scratch { path, source: io.kind().into() };
            }
            source = error.source();
        }
        if error.to_string().contains("os error 28") {
            let path = self.scratch.dir().to_path_buf();
            return MixerError::Scratch { path, source: std::io::ErrorKind::StorageFull.into() };
        }
        MixerError::Query { key: query.full_key(), problem: one_sentence(&error.find_root().message()) }
    }
}

/// What the operators of a plan wrote to the disk while it ran.
fn spilled_bytes(plan: &dyn ExecutionPlan) -> usize {
    let own = plan.metrics().and_then(|metrics| metrics.spilled_bytes()).unwrap_or(0);
    own + plan.children().into_iter().map(|child| spilled_bytes(child.as_ref())).sum::<usize>()
}

/// The clause that joins a table to the pool. Its own `uid` or `key` goes under another name: in conditions these mean the
/// pool's.
fn left_join(table: &str, on: JoinKey, files: &ParquetFiles) -> String {
    let on = on.column();
    let others = files.schema().fields().iter().filter(|field| field.name() != on);
    let others: String = others.map(|field| format!(", \"{}\"", field.name())).collect();
    format!(
        " LEFT JOIN (SELECT {on} AS {table}_{on}{others} FROM {table}) AS {table} ON {POOL}.{on} = {table}.{table}_{on}"
    )
}

fn is_exhausted(error: &DataFusionError) -> bool {
    matches!(error.find_root(), DataFusionError::ResourcesExhausted(_))
}

/// The files of the table at `index` of the config: the file itself, or all `*.parquet` of a directory.
fn table_files(path: &Path, index: usize) -> Result<Vec<PathBuf>, MixerError> {
    if path.is_dir() {
        metadata_files(path, crate::config::DEFAULT_METADATA_FILES, &format!("table.{index}.path"))
    } else {
        Ok(vec![path.to_path_buf()])
    }
}

fn listing(files: &ParquetFiles) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    let urls = files.files.iter().map(|file| file_url(&file.path)).collect::<Result<Vec<_>, _>>()?;
    if urls.is_empty() {
        return Ok(Arc::new(EmptyTable::new(files.schema().clone())));
    }
    let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension("");
    let config = ListingTableConfig::new_with_multi_paths(urls)
        .with_listing_options(options)
        .with_schema(files.schema().clone());
    Ok(Arc::new(ListingTable::try_new(config)?))
}

/// The URL of a file, whatever its name: what parses a path takes `*`, `?` and `[` in it for a pattern.
fn file_url(path: &Path) -> Result<ListingTableUrl, DataFusionError> {
    let mut url = ListingTableUrl::parse("file:///")?.get_url().clone();
    let path = std::fs::canonicalize(path)?;
    let parts = path.iter().skip(1).map(std::ffi::OsStr::to_string_lossy);
    url.path_segments_mut().expect("a file URL has a path").pop_if_empty().extend(parts);
    ListingTableUrl::try_new(url, None)
}

/// The texts of the only column of a result.
pub(crate) fn result_texts(batch: &RecordBatch) -> arrow_array::StringArray {
    texts(batch.column(0)).expect("the columns uid and key are text, checked when the table was opened")
}
