{# Descriptions become comments where they are not there already. dbt writes all of them again on every run, a row of
   the catalogs for each column; one that follows the queue does that every few seconds, with nothing to do. #}
{% macro postgres__persist_docs(relation, model, for_relation, for_columns) -%}
    {%- set comments = run_query("
        select coalesce(attname, '(all of it)'), description
        from pg_description left join pg_attribute on attrelid = objoid and attnum = objsubid
        where classoid = 'pg_class'::regclass and objoid = '" ~ relation ~ "'::regclass
    ").columns -%}
    {%- set comments = dict(zip(comments[0].values(), comments[1].values())) -%}
    {%- set descriptions = {'(all of it)': model.description} -%}
    {%- for column in model.columns.values() -%}{%- do descriptions.update({column.name: column.description}) -%}{%- endfor -%}
    {%- set changed = [] -%}
    {%- for name, description in descriptions.items() if description != comments.get(name, '') -%}
        {%- do changed.append(name) -%}
    {%- endfor -%}
    {%- if changed -%}{{ default__persist_docs(relation, model, for_relation, for_columns) }}{%- endif -%}
{%- endmacro %}
