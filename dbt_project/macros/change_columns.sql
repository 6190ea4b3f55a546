{#
  A longer text was declared than a table has room for. PostgreSQL would end the insert; this says what to do, before
  anything is built.
#}
{% macro refuse_narrow_columns() -%}
    {%- if execute -%}
        {%- for column, declared in narrow_columns(this, model.columns) -%}
            {%- do exceptions.raise_compiler_error(
                this.schema ~ '.' ~ this.identifier ~ '.' ~ column.name ~ ' is ' ~ column.data_type ~ ', and ' ~ declared
                ~ ' is declared. Give it the length that is declared: dbt run-operation widen_columns'
            ) -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro %}


{# A shorter text was declared. The boundary rejects what is longer, but not of messages that are purged from raw; and the
   model's cast cuts off: two users would be one. #}
{% macro refuse_to_cut_off() -%}
    {%- set staged = ref('int_messages__masked') -%}
    {%- for event, it in (declared_events().items() if execute and should_full_refresh() else []) if it.model == model.name -%}
        {%- set columns = [] -%}
        {%- for field in it.fields.values() if field.longest and field.name in model.columns -%}
            {%- do columns.append('coalesce(max(length(' ~ adapter.quote(field.name) ~ ')), 0) as ' ~ adapter.quote(field.name)) -%}
        {%- endfor -%}
        {%- set of_it = staged ~ " where is_accepted and event_type = '" ~ event ~ "'" -%}
        {%- set lengths = run_query('select ' ~ columns | join(', ') ~ ' from ' ~ of_it).rows[0].dict() if columns else {} -%}
        {%- for name, held in lengths.items() if held > it.fields[name].longest -%}
            {%- do wrong(
                'event ' ~ event ~ ', field ' ~ name, 'longest: ' ~ it.fields[name].longest ~ ' would cut off texts of up to '
                ~ held ~ ' characters, of messages that are purged from raw or not judged again yet'
            ) -%}
        {%- endfor -%}
    {%- endfor -%}
{%- endmacro %}


{# A field is no longer declared, or masked from now on. What was published of it would stay, in silence, and a mart that
   still names it would go on. Or it has another type: a table may take that as well, and then has both kinds of values. #}
{% macro refuse_undeclared_columns() -%}
    {%- set table = load_cached_relation(this) if execute and not should_full_refresh() -%}
    {%- if table -%}
        {%- set declared = model.columns | list + declared_columns() -%}
        {%- set held = adapter.get_columns_in_relation(table) -%}
        {%- for column in held if column.name not in declared -%}
            {%- do exceptions.raise_compiler_error(
                this.schema ~ '.' ~ this.identifier ~ ' has ' ~ column.name ~ ', which is no longer declared. Take it out of'
                ~ ' the models, then drop it everywhere: make build ARGS=--full-refresh'
            ) -%}
        {%- endfor -%}
        {%- for is_now in adapter.get_columns_in_relation(ref('stg_sqs__messages')) -%}
            {%- for column in held if column.name == is_now.name and column.data_type != is_now.data_type -%}
                {%- do refuse_another_type(table, column.name, is_now.data_type) -%}
            {%- endfor -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro %}


{% macro refuse_another_type(table, column, type) -%}
    {%- set table = table.schema ~ '.' ~ table.identifier -%}
    {%- do exceptions.raise_compiler_error(
        table ~ '.' ~ column ~ ' has another type than ' ~ type ~ ', which the project has. Change it first: alter table '
        ~ table ~ ' alter column ' ~ column ~ ' type ' ~ type ~ ' using ' ~ column ~ '::' ~ type ~ ' (or using null, if'
        ~ " values cannot be converted). Views that show it have to be dropped for that; the project's are made anew by"
        ~ ' dbt run. Then: make build ARGS=--full-refresh'
    ) -%}
{%- endmacro %}


{# dbt run-operation widen_columns: each such column gets its declared length, in one transaction. The project's views that
   show it are dropped for that, and made anew by the next `dbt run`; a view of somebody else's stops it. #}
{% macro widen_columns() -%}
    {%- do run_query('begin') -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' -%}
        {%- set table = load_relation(api.Relation.create(database=target.database, schema=node.schema, identifier=node.alias)) -%}
        {%- for column, declared in narrow_columns(table, node.columns) -%}
            {%- do drop_views_on(table, [column.name]) -%}
            {%- do run_query('alter table ' ~ table ~ ' alter column ' ~ column.quoted ~ ' type ' ~ declared) -%}
            {%- do log(table.schema ~ '.' ~ table.identifier ~ '.' ~ column.name ~ ' is ' ~ declared ~ ' now; run dbt.', info=true) -%}
        {%- endfor -%}
    {%- endfor -%}
    {%- do run_query('commit') -%}
{%- endmacro %}


{# Before columns are dropped or retyped: the project's views that show them, and those on these, go; the next `dbt run`
   makes them anew. A view of somebody else's stops it. #}
{% macro drop_views_on(table, columns) -%}
    {%- set ours = [] -%}
    {%- for node in graph.nodes.values() if node.resource_type == 'model' and node.config.materialized == 'view' -%}
        {%- do ours.append(node.schema ~ '.' ~ node.alias) -%}
    {%- endfor -%}
    {%- set that_show_them -%}
        select ev_class
        from pg_depend
        inner join pg_rewrite on pg_rewrite.oid = objid and classid = 'pg_rewrite'::regclass
        inner join pg_attribute on attrelid = refobjid and attnum = refobjsubid
        where refobjid = '{{ table }}'::regclass and attname in ({{ quoted_list(columns) }})
    {%- endset -%}
    {%- set views = run_query(
        "select concat_ws('.', relnamespace::regnamespace, quote_ident(relname)) from pg_class"
        ~ ' where oid in (' ~ views_on(that_show_them) ~ ')'
    ).columns[0].values() | list -%}
    {%- for view in views if view not in ours -%}
        {%- do exceptions.raise_compiler_error(
            'The view ' ~ view ~ ' shows ' ~ columns | join(', ') ~ ' of ' ~ table.schema ~ '.' ~ table.identifier
            ~ ', or stands on a view that does. Drop it first: drop view ' ~ view ~ '.'
        ) -%}
    {%- endfor -%}
    {%- if views -%}{%- do run_query('drop view ' ~ views | join(', ')) -%}{%- endif -%}
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
