{#
  Of dbt's own commands and flags, those that would take from analysts what they read: here a view is replaced in place
  and a table is rebuilt in place, so an empty one would be an empty one for them.
#}
{% macro refuse_empty() -%}
    {%- if execute and flags.EMPTY -%}
        {{ exceptions.raise_compiler_error(
            '--empty is refused: it would empty what analysts read. To try a change, use a database of your own'
            ~ ' (README.md, Change the event).'
        ) }}
    {%- endif -%}
{%- endmacro %}


{# Settings of the login or of the database with which the same SQL means something else. #}
{% macro refuse_settings() -%}
    {%- set needed = {
        'standard_conforming_strings': 'on', 'default_transaction_isolation': 'read committed',
        'client_encoding': 'UTF8',
    } -%}
    {%- set held = "select name, setting from pg_settings where name in (" ~ quoted_list(needed) ~ ")" -%}
    {%- for given, value in (run_query(held).rows if execute else []) -%}
        {%- set wanted = needed[given] -%}
        {%- if value != wanted -%}
            {{ exceptions.raise_compiler_error(
                given ~ ' is not ' ~ wanted ~ ', so dbt would not do here what it is tested for. As superuser:'
                ~ ' alter database ' ~ target.database ~ ' reset ' ~ given ~ '; alter role ' ~ target.user ~ ' reset ' ~ given ~ '.'
            ) }}
        {%- endif -%}
    {%- endfor -%}
{%- endmacro %}


{% materialization clone, default -%}
    {{ exceptions.raise_compiler_error(
        'dbt clone is refused: it would put a view of itself in the place of ' ~ this.schema ~ '.' ~ this.identifier
        ~ '. To try a change, use a database of your own (README.md, Change the event).'
    ) }}
{%- endmaterialization %}
