{#
  A longer text was declared than a table has room for. PostgreSQL would end the insert; this says what to do, before
  anything is built.
#}
{% macro refuse_narrow_columns() -%}
    {%- if execute and not should_full_refresh() -%}
        {%- for column, declared in narrow_columns(this, model.columns) -%}
            {%- do exceptions.raise_compiler_error(
                this.schema ~ '.' ~ this.identifier ~ '.' ~ column.name ~ ' is ' ~ column.data_type ~ ', and ' ~ declared
                ~ ' is declared. Give it the length that is declared: dbt run-operation widen_columns'
            ) -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro %}


{# dbt run-operation widen_columns: each such column gets its declared length, in one transaction. The project's views on
   the table are dropped for that, and made anew by the next `dbt run`; a view of somebody else's on them stops it. #}
{% macro widen_columns() -%}
    {%- do run_query('begin') -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' -%}
        {%- set table = load_relation(api.Relation.create(database=target.database, schema=node.schema, identifier=node.alias)) -%}
        {%- for column, declared in narrow_columns(table, node.columns) -%}
            {%- for view in graph.nodes.values() if view.resource_type == 'model' and view.config.materialized == 'view'
                and node.unique_id in view.depends_on.nodes -%}
                {%- do run_query('drop view if exists ' ~ view.schema ~ '.' ~ view.alias) -%}
            {%- endfor -%}
            {%- do run_query('alter table ' ~ table ~ ' alter column ' ~ column.quoted ~ ' type ' ~ declared) -%}
            {%- do log(table.schema ~ '.' ~ table.identifier ~ '.' ~ column.name ~ ' is ' ~ declared ~ ' now; run dbt.', info=true) -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- do run_query('commit') -%}
{%- endmacro %}


{# The columns of a table that are shorter than declared, each with its declared type. #}
{% macro narrow_columns(table, declared) -%}
    {%- set narrow = [] -%}
    {%- if table is not none and load_relation(table) and load_relation(table).is_table -%}
        {%- for column in adapter.get_columns_in_relation(table) if column.is_string() and column.char_size -%}
            {%- set type = declared[column.name].data_type if column.name in declared else '' -%}
            {%- set length = modules.re.fullmatch('varchar\\(([0-9]+)\\)', type | string) -%}
            {%- if length and length.group(1) | int > column.char_size -%}{%- do narrow.append((column, type)) -%}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ return(narrow) }}
{%- endmacro %}
