{# After a model ran: messages that were erased since leave its table, in the same transaction as what it added. Then its
   statistics are made anew, which hold samples of values; in a function, because dbt sends one statement. #}
{% macro remove_erased() -%}
    {%- if model.config.materialized in ('table', 'incremental') and 'message_id' in model.columns -%}
        do $$
        begin
            delete from {{ this }} where message_id in (select message_id from {{ source('privacy', 'erased_messages') }});
            if found then
                analyze {{ this }};
            end if;
        end $$
    {%- endif -%}
{%- endmacro %}


{# What the project's models make: each erases and carries over its own table. #}
{% macro relations_of_models() -%}
    {%- set made = ['none'] -%}
    {%- for node in (graph.nodes.values() if execute else []) if node.resource_type == 'model' -%}
        {%- do made.append(node.schema ~ '.' ~ node.alias) -%}
    {%- endfor -%}
    {{ quoted_list(made) }}
{%- endmacro %}
