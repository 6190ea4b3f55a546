{#
  dbt's own incremental materialization, but for the full refresh of a table that is there already: dbt would build
  another and drop the old one, with all that analysts built on it. Here the table stays, and only rows that came out
  differently are written, in one transaction: readers never wait, and a rebuild that changes nothing leaves nothing
  to vacuum. New columns are added; a column that analysts may use is never dropped or retyped.
#}
{% materialization incremental, adapter='postgres' -%}
    {%- set existing = load_cached_relation(this) -%}
    {%- if existing is none or not existing.is_table or not should_full_refresh() -%}
        {{ return(dbt.materialization_incremental_default()) }}
    {%- endif -%}
    {%- set rebuilt = make_temp_relation(existing) -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {{ get_assert_columns_equivalent(sql) }}
    {% do run_query(create_table_as(True, rebuilt, sql)) %}
    {% do run_query('analyze ' ~ rebuilt) %}
    {% do add_new_columns(existing, rebuilt) %}
    {% call statement('main') -%}
        {%- if is_distributed() %} {{ rewrite(existing, rebuilt) }}
        {%- else %} {{ write_differences(existing, rebuilt, config.require('unique_key')) }}
        {%- endif %}
    {%- endcall %}
    {% do run_query('drop table ' ~ rebuilt) %}

    {% do apply_grants(existing, config.get('grants'), should_revoke=True) %}
    {% do persist_docs(existing, model) %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': [existing]}) }}
{%- endmaterialization %}


{% macro add_new_columns(existing, rebuilt) -%}
    {%- set changes = check_for_schema_changes(rebuilt, existing) -%}
    {%- set changed = changes['target_not_in_source'] | map(attribute='name') | list
        + changes['new_target_types'] | map(attribute='column_name') | list -%}
    {%- if changed -%}
        {%- do exceptions.raise_compiler_error(
            existing.schema ~ '.' ~ existing.identifier ~ ' cannot be rebuilt in place: ' ~ changed | join(', ')
            ~ ' would be dropped or retyped. Change the table first (alter table), or drop it with what stands on it.'
        ) -%}
    {%- endif -%}
    {%- if changes['source_not_in_target'] -%}
        {%- do alter_relation_add_remove_columns(existing, changes['source_not_in_target'], none) -%}
    {%- endif -%}
{%- endmacro %}


{% macro write_differences(existing, rebuilt, key) -%}
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
