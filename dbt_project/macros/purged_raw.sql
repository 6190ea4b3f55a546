{# Only raw can say what a message was. Once some of it is purged, what was made of it is all there is. #}
{% macro refuse_to_forget_purged() -%}
    {%- if execute and should_full_refresh() and load_cached_relation(this) -%}
        {%- set purged = scalar('select coalesce(sum(messages), 0) from ' ~ source('raw', 'purges')) -%}
        {%- if purged -%}
            {%- do exceptions.raise_compiler_error(
                this.identifier ~ ' cannot be rebuilt: ' ~ purged ~ ' of its messages were purged from raw and would be lost.'
                ~ ' Leave it out: dbt run --full-refresh --exclude ' ~ this.identifier ~ '.'
            ) -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro %}
