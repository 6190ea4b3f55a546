{# After a model ran: messages that were erased since leave its table, in the same transaction as what it added. #}
{% macro remove_erased() -%}
    {%- if model.config.materialized in ('table', 'incremental') and 'message_id' in model.columns -%}
        delete from {{ this }} where message_id in (select message_id from {{ source('privacy', 'erased_messages') }})
    {%- endif -%}
{%- endmacro %}
