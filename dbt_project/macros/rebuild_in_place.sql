{#
  dbt's own incremental materialization, but for the full refresh of a table that is there already: dbt would build
  another and drop the old one, with all that analysts built on it. Here the table stays, and only rows that came out
  differently are written, in one transaction: readers never wait, and a rebuild that changes nothing leaves nothing
  to vacuum.
#}
{% materialization incremental, adapter='postgres' -%}
    {%- set existing = load_cached_relation(this) -%}
    {%- if existing is none or not existing.is_table or not should_full_refresh() -%}
        {{ return(dbt.materialization_incremental_default()) }}
    {%- endif -%}
    {%- set rebuilt = make_temp_relation(existing) -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {% if config.get('contract').enforced %}{{ get_assert_columns_equivalent(sql) }}{% endif %}
    {% do run_query(create_table_as(True, rebuilt, sql)) %}
    {% do change_columns(existing, rebuilt) %}
    {% if config.get('meta', {}).get('outlives_raw') %}{% do keep_what_is_purged(existing, rebuilt) %}{% endif %}
    {% do run_query('analyze ' ~ rebuilt) %}  {#- when all rows are in it: planned for fewer, it would take hours -#}
    {% call statement('main') -%} {{ write_anew(existing, rebuilt) }} {%- endcall %}
    {% do run_query('drop table ' ~ rebuilt) %}
    {% do create_missing_indexes(existing) %}
    {% do run_query('analyze ' ~ existing) %}  {#- statistics hold samples of values, also of erased persons -#}

    {% do apply_grants(existing, config.get('grants'), should_revoke=True) %}
    {% do persist_docs(existing, model) %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': [existing]}) }}
{%- endmaterialization %}


{# Adds the columns that are new and drops those that the project no longer has. A column that is used elsewhere, or has
   another type, stops the rebuild. #}
{% macro change_columns(existing, rebuilt) -%}
    {%- set changes = check_for_schema_changes(rebuilt, existing) -%}
    {%- for column in changes['new_target_types'] -%}
        {%- do refuse_another_type(existing, column.column_name, column.new_type) -%}
    {%- endfor -%}
    {%- if changes['target_not_in_source'] -%}
        {%- do drop_views_on(existing, changes['target_not_in_source'] | map(attribute='name') | list) -%}
    {%- endif -%}
    {%- if changes['source_not_in_target'] or changes['target_not_in_source'] -%}
        {%- do alter_relation_add_remove_columns(
            existing, changes['source_not_in_target'] or none, changes['target_not_in_source'] or none
        ) -%}
    {%- endif -%}
{%- endmacro %}


{# Those that were declared after the table was made. dbt gives each index a name with the time in it. #}
{% macro create_missing_indexes(table) -%}
    {%- for index in config.get('indexes', []) -%}
        {%- set is_there = scalar(
            "select count(*) > 0 from pg_index where indrelid = '" ~ table ~ "'::regclass and pg_get_indexdef(indexrelid) like '"
            ~ ('%UNIQUE' if index.unique) ~ '%USING ' ~ index.get('type', 'btree') ~ ' (' ~ index.columns | join(', ') ~ ")'"
        ) -%}
        {%- if not is_there -%}{%- do run_query(get_create_index_sql(table, index)) -%}{%- endif -%}
    {%- endfor -%}
{%- endmacro %}


{# Only raw can say what a message was. What was made of messages that have been purged from it since stays as it is.
   (Citus joins a table of its workers with a query on one of the coordinator's, and not with the table.) #}
{% macro keep_what_is_purged(existing, rebuilt) -%}
    {%- set columns = adapter.get_columns_in_relation(existing) | map(attribute='quoted') | join(', ') -%}
    {%- do run_query(
        'insert into ' ~ rebuilt ~ ' (' ~ columns ~ ') with anew as (select message_id from ' ~ rebuilt ~ ')'
        ~ ' select ' ~ columns ~ ' from ' ~ existing ~ ' as old'
        ~ ' where not exists (select from anew where anew.message_id = old.message_id)'
    ) -%}
{%- endmacro %}


{% macro write_differences(existing, rebuilt) -%}
    {%- set key = config.require('unique_key') -%}
    {%- set columns = adapter.get_columns_in_relation(rebuilt) | map(attribute='quoted') | list -%}
    delete from {{ existing }} as old
    where not exists (
        select from {{ rebuilt }} as new
        where
            new.{{ key }} = old.{{ key }}
            and (new.{{ columns | join(', new.') }}) is not distinct from (old.{{ columns | join(', old.') }})
    );
    insert into {{ existing }} ({{ columns | join(', ') }})
    select {{ columns | join(', ') }} from {{ rebuilt }} as new
    where not exists (select from {{ existing }} as old where old.{{ key }} = new.{{ key }})
{%- endmacro %}
