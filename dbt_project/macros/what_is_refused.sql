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


{% materialization clone, default -%}
    {{ exceptions.raise_compiler_error(
        'dbt clone is refused: it would put a view of itself in the place of ' ~ this.schema ~ '.' ~ this.identifier
        ~ '. To try a change, use a database of your own (README.md, Change the event).'
    ) }}
{%- endmaterialization %}
