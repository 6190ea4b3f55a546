{# No two rows have the same values in all of these columns. The values stay out of what a failure stores. #}
{% test unique_together(model, columns) %}

select count(*) as rows_alike
from {{ model }}
group by {{ columns | join(', ') }}
having count(*) > 1

{% endtest %}
