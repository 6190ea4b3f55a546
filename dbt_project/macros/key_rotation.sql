{# Before a model runs: its table must hold tokens of the newest key alone, or new rows would not join old ones. The
   lock, which an insert takes anyway, makes carry_tokens_over wait for running models, and later ones for it. #}
{% macro refuse_to_mix_keys() -%}
    {%- set table = load_cached_relation(this) if execute and 'mask_key_version' in model.columns -%}
    {%- if table and table.is_table -%}
        {%- do run_query("lock table " ~ table ~ " in row exclusive mode") -%}
        {%- set newest = "order by load_id desc limit 1" if 'load_id' in model.columns else "order by mask_key_version limit 1" -%}
        {%- set held = run_query("select mask_key_version from " ~ table ~ " " ~ newest).columns[0].values() -%}
        {%- if held and held[0] | int != mask_key_version() -%}
            {{ exceptions.raise_compiler_error(
                table ~ ' holds tokens of another key: ' ~ (
                    'finish the rotation with `make rotate-key`.' if held[0] | int < mask_key_version()
                    else 'restore masking.keys, which ends with key ' ~ mask_key_version() ~ ', from a newer backup.'
                )
            ) }}
        {%- endif -%}
    {%- endif -%}
{%- endmacro %}


{# dbt run-operation carry_tokens_over: every table with tokens moves to the newest key, all in one transaction, from the
   tokens alone. Nothing is done twice, so an interrupted run is simply started again. #}
{% macro carry_tokens_over() -%}
    {%- set version = mask_key_version() -%}
    {%- set tables = [] -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' and 'mask_key_version' in node.columns -%}
        {%- set table = load_relation(api.Relation.create(database=target.database, schema=node.schema, identifier=node.alias)) -%}
        {%- if table and table.is_table -%}
            {%- do tables.append((table, adapter.get_columns_in_relation(table) | map(attribute='name') | list)) -%}
        {%- endif -%}
    {%- endfor -%}
    {%- set kinds = {} -%}
    {%- for field in declared_fields(masked=true) -%}{%- do kinds.update({'masked_' ~ field.name: field.masked_as}) -%}{%- endfor -%}

    {%- for table, columns in tables -%}
        {%- for column in columns if column.startswith('masked_') and column not in kinds -%}
            {%- do exceptions.raise_compiler_error(
                table.schema ~ '.' ~ table.identifier ~ '.' ~ column ~ ' has tokens of a field that is no longer declared,'
                ~ ' so its kind and key are unknown. Drop it (alter table ' ~ table.schema ~ '.' ~ table.identifier
                ~ ' drop column ' ~ column ~ '), then run `make rotate-key` again.'
            ) -%}
        {%- endfor -%}
    {%- endfor -%}

    {%- do run_query("begin") -%}
    {%- for table, columns in tables -%}
        {%- do run_query("lock table " ~ table ~ " in share row exclusive mode") -%}
    {%- endfor -%}
    {%- set is_open = scalar("select rotation_is_open from " ~ source('raw', 'pipeline_state')) -%}
    {%- if not is_open -%}  {#- another `make rotate-key` has done it, and waits for these locks before it ends one -#}
        {%- do log('No key rotation is open: there is nothing to carry over.', info=true) -%}
    {%- endif -%}
    {%- for table, columns in tables if is_open -%}
        {%- set new_values = {'mask_key_version': version} -%}
        {%- for column in columns if column in kinds -%}
            {%- do new_values.update({column: "masking.carried_over('" ~ kinds[column] ~ "', " ~ column ~ ', mask_key_version)'}) -%}
        {%- endfor -%}
        {%- call statement('carry_over') -%}{{ carry_over(table, new_values) }}{%- endcall -%}
        {%- do run_query('analyze ' ~ table) -%}  {#- statistics hold samples of the old tokens -#}
        {%- do log(table ~ ': ' ~ load_result('carry_over').response.rows_affected ~ ' rows carried over to key ' ~ version, info=true) -%}
    {%- endfor -%}
    {%- do run_query("commit") -%}
{%- endmacro %}


{% macro update_tokens(table, new_values) -%}
    update {{ table }} set
        {% for column, value in new_values.items() -%}
            {{ column }} = {{ value }}{{ ', ' if not loop.last }}
        {%- endfor %}
    where mask_key_version < {{ new_values.mask_key_version }}
{%- endmacro %}
