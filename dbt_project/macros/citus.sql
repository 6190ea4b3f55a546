{#
  What dbt does otherwise where raw is spread over the workers of a Citus cluster; the reasons are in
  migrations/routines/citus.sql. Elsewhere the first macro says no. Nothing outside of this file asks it.
#}
{% macro is_distributed() -%}
    {{ return(
        execute
        and scalar("select to_regclass('pg_catalog.pg_dist_node') is not null")
        and scalar('select raw.is_distributed()')
    ) }}
{%- endmacro %}


{# What only the workers know, before a value whose hash leaves them: a hash of an address alone can be guessed. #}
{% macro secret_part() -%} {{ 'masking.secret_part()' if is_distributed() else "''" }} {%- endmacro %}


{# A masked value. Its keys are on the workers as well, and each worker looks them up there. #}
{% macro mask(canonical_value, kind) -%}
    {%- if not is_distributed() -%}{{ return(masked_here(canonical_value, kind)) }}{%- endif -%}
    {{ return("masking.masked('" ~ kind ~ "', " ~ canonical_value ~ ", " ~ mask_key_version() ~ ")") }}
{%- endmacro %}


{# Members of the message, each taken out once. jsonb_to_record() is STABLE, and Citus would bring the messages to the
   coordinator for it. #}
{% macro members_of_event(members) -%}
    {%- if not is_distributed() -%}{{ return(members_by_record(members)) }}{%- endif -%}
    {%- set arrays, columns = [], [] -%}
    {%- for member in members -%}
        {%- do arrays.append("array[parsed.event ->> '" ~ member ~ "']") -%}
        {%- do columns.append(adapter.quote(member)) -%}
    {%- endfor -%}
    unnest(
    {{ arrays | join(', ') }}
) as fields ({{ columns | join(', ') }})
{%- endmacro %}


{# After a model ran: its table, new or from before, becomes a distributed one, in the same transaction; beside dbt's
   other tables, and not beside raw's: what one role has changed, another can read no more in the same transaction, nor
   what is colocated with it. A table without message_id stays on the coordinator. #}
{% macro distribute() -%}
    {%- if model.config.materialized == 'incremental' and 'message_id' in columns_of(model.name) and is_distributed() -%}
        do $$
        begin
            if not exists (select from pg_dist_partition where logicalrelid = '{{ this }}'::regclass) then
                perform raw.choose_shard_count();
                perform create_distributed_table('{{ this }}', 'message_id', colocate_with => coalesce(
                    (
                        select min(logicalrelid::regclass::text) from pg_dist_partition
                        inner join pg_class on pg_class.oid = logicalrelid
                        where relowner = current_user::regrole
                    ),
                    'none'
                ));
                perform truncate_local_data_after_distributing_table('{{ this }}');
            end if;
        end $$
    {%- endif -%}
{%- endmacro %}


{# After staging took new messages: those of erased ones that the queue brought back leave raw; elsewhere they never come. #}
{% macro erase_returned() -%}
    {%- if is_distributed() -%} select privacy.erase_returned() {%- endif -%}
{%- endmacro %}


{# Before staging takes new messages: what was erased has left it, or could not come back. #}
{% macro remove_erased_before() -%}
    {%- if is_distributed() and load_cached_relation(this) -%} {{ remove_erased() }} {%- endif -%}
{%- endmacro %}


{# A view to select from, with the rights of its owner, or a window of its loads. #}
{% macro as_owner(view, after=none, before=none) -%}
    {%- if is_distributed() -%}
        {{ reader(view) }}({{ 'null' if after is none else after }}, {{ 'null' if before is none else before }})
    {%- else -%}
        {{ view }}
    {%- endif -%}
{%- endmacro %}


{% macro reader(view) -%}
    {{ view.incorporate(path={'identifier': 'read_' ~ view.identifier}) }}
{%- endmacro %}


{# The function behind as_owner(), for those who may read the view. The workers are asked as the function's owner. The
   name of the database is left out: a restored one may have another. #}
{% macro create_reader(view, query, columns) -%}
    {%- set signature = reader(view) ~ '(bigint, bigint)' -%}
    {%- do run_query("
        create or replace function " ~ reader(view) ~ "(after bigint default null, before bigint default null)
        returns " ~ columns ~ " language plpgsql security definer set search_path = pg_catalog, pg_temp as $reader$
        #variable_conflict use_column
        begin
            return query execute $query$" ~ query | replace(adapter.quote(view.database) ~ '.', '') ~ "$query$
                || case when before is not null then format(' where load_id > %s and load_id < %s', after, before) else '' end;
        end $reader$
    ") -%}
    {%- do run_query('revoke execute on function ' ~ signature ~ ' from public') -%}
    {%- do run_query('grant execute on function ' ~ signature ~ ' to ' ~ config.get('grants')['select'] | join(', ')) -%}
{%- endmacro %}


{# Whether the readers of this view may not read what it reads, and so need the function. #}
{% macro needs_reader() -%}
    {{ return(config.get('meta', {}).get('read_as_owner') and is_distributed()) }}
{%- endmacro %}


{# What such a view selects: all of the function. #}
{% macro with_owners_rights(view, sql) -%}
    {%- if not needs_reader() -%}{{ return(sql) }}{%- endif -%}
    {%- set columns = [] -%}
    {%- for column in model.columns.values() -%}
        {%- do columns.append(adapter.quote(column.name) ~ ' ' ~ column.data_type) -%}
    {%- endfor -%}
    {%- do create_reader(view, sql, 'table (' ~ columns | join(', ') ~ ')') -%}
    {{ return('select * from ' ~ as_owner(view)) }}
{%- endmacro %}


{# Whether the user of a pair had logged in before it. Citus takes no subquery that belongs to each pair, so the
   coordinator compares them all. #}
{% macro came_later() -%}
    {%- if not is_distributed() -%}{{ return(came_later_by_index()) }}{%- endif -%}
    first_seen_at > min(first_seen_at) over (partition by user_id)
{%- endmacro %}


{# All rows of a table anew, in one transaction: the same rows come out, so nobody sees a difference but in values. #}
{% macro write_anew(table, new_rows) -%}
    {%- if not is_distributed() -%}{{ return(write_differences(table, new_rows)) }}{%- endif -%}
    {%- set columns = adapter.get_columns_in_relation(table) | map(attribute='quoted') | join(', ') -%}
    delete from {{ table }};
    insert into {{ table }} ({{ columns }}) select {{ columns }} from {{ new_rows }}
{%- endmacro %}


{# The same with some columns computed, on the coordinator: no update may call a stable function on the workers. #}
{% macro carry_over(table, new_values) -%}
    {%- if not is_distributed() -%}{{ return(update_tokens(table, new_values)) }}{%- endif -%}
    create temporary table {{ 'rewritten_' ~ table.identifier }} on commit drop as
    with held as materialized (select * from {{ table }})
    select
        {% for column in adapter.get_columns_in_relation(table) | map(attribute='name') -%}
            {{ new_values.get(column, column) }} as {{ column }}{{ ', ' if not loop.last }}
        {%- endfor %}
    from held;
    {{ write_anew(table, 'pg_temp.rewritten_' ~ table.identifier) }}
{%- endmacro %}
