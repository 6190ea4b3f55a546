"""Rules that the dbt project keeps about itself."""

import pytest

from tests.pipeline import dbt, parsed, query


@pytest.fixture(scope="module")
def manifest(module_database):
    return parsed(module_database, "transformer_user")


@pytest.fixture(scope="module")
def models(manifest):
    return {node.name: node for node in manifest.nodes.values() if node.resource_type == "model"}


def test_every_model_column_and_source_says_what_it_is(manifest, models):
    tables = [*models.values(), *manifest.sources.values()]
    assert [table.name for table in tables if not table.description] == []
    columns = [(table.name, column) for table in models.values() for column in table.columns.values()]
    assert [(table, column.name) for table, column in columns if not (column.description and column.data_type)] == []


def test_what_analysts_read_promises_its_columns_and_every_model_has_a_unit_test(manifest, models):
    unpromised = {model.schema for model in models.values() if not model.config.contract.enforced}
    assert unpromised == {"masking", "staging"}  # whose columns are the declaration's
    untested = {"pipeline_health", "queue_health", "base_sqs__masked_values"}  # tests/ have them, on real tables
    assert set(models) - {test.model for test in manifest.unit_tests.values()} <= untested


def test_only_the_boundary_reads_messages_and_keys(manifest, models):
    plain = {"source.masked_logins.raw.sqs_messages", "source.masked_logins.masking.keys"}
    readers = {name for name, model in models.items() if plain & set(model.depends_on.nodes)}
    # queue_health reads times and ids, as transformer: the test of privileges shows that it cannot read more
    assert readers - {"queue_health"} == {"base_sqs__messages"}
    inside = {
        name for name, model in models.items() if "model.masked_logins.base_sqs__messages" in model.depends_on.nodes
    }
    assert {models[name].schema for name in inside} == {"masking"}


def test_the_database_shows_the_descriptions(module_database):
    dbt(module_database, "run")
    undescribed = query(
        module_database,
        """
        select attrelid::regclass::text, attname from pg_attribute
        join pg_class on pg_class.oid = attrelid and relkind in ('r', 'v')
        where
            relnamespace = 'analytics'::regnamespace and attnum > 0 and not attisdropped
            and (col_description(attrelid, attnum) is null or obj_description(attrelid) is null)
        """,
        login="postgres",
    )
    assert undescribed == []
