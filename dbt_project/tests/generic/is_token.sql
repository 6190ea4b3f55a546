{# A masked column holds tokens and nothing else. Reports how many are not, never which. #}
{% test is_token(model, column_name) %}

select count(*) as not_tokens
from {{ model }}
where {{ column_name }} !~ '^[0-9a-f]{64}$'
having count(*) > 0

{% endtest %}
